"""A linear probe: multinomial logistic regression on frozen features.

Sources    Alain and Bengio, ICLR workshop 2017, arXiv:1610.01644; for unlearning: Gao et al., 2026, arXiv:2604.08271
Notation   X (n, d) features, y (n,) classes, w_i = n / (k n_y) so that each of the k classes weighs the same

    minimise over W (C, d), b (C,):   sum_i w_i CE(W x_i + b, y_i) + penalty / 2 ||W||^2

Features are standardised per dimension by the samples that the probe is fitted on. The problem is strictly convex in
W, so the result depends on neither a seed nor the order of the samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

PENALTY = 10.0  # strong enough that the probability of an unseen sample is not 0 or 1
STEPS = 200  # of L-BFGS
TOLERANCE = 1e-5  # on the gradient of the mean objective; the norm of W is then accurate to about 1e-3


@dataclass(frozen=True, eq=False)
class Probe:
    """A fitted probe; classes without training samples have probability 0."""

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor
    classes: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """Logits (n, k) of features (n, d), in the order of `classes`, float64."""
        return (features.double() - self.mean) / self.scale @ self.weight.T + self.bias

    def probabilities(self, features: Tensor, classes: int) -> Tensor:
        """Probabilities (n, classes) of features (n, d); 0 for classes that the probe was not fitted on."""
        probabilities = torch.zeros(len(features), classes, dtype=torch.float64, device=features.device)
        probabilities[:, self.classes] = self.logits(features).softmax(1)
        return probabilities


def fit_probe(features: Tensor, labels: Tensor, *, penalty: float = PENALTY) -> Probe:
    """Fit a probe by L-BFGS, in float64 on the device of the features.

    Args:
        features: (n, d), n >= 1.
        labels: (n,), class indices.
        penalty: L2 weight decay, > 0.
    """
    x = features.detach().double()
    classes, y = labels.to(x.device).unique(return_inverse=True)
    mean, scale = x.mean(0), x.std(0, unbiased=False)
    scale = torch.where(scale > 1e-8 * (1 + mean.abs()), scale, torch.ones_like(scale))  # a constant feature stays at 0
    x = (x - mean) / scale
    counts = torch.bincount(y, minlength=len(classes)).double()
    each = (len(y) / (len(classes) * counts))[y]
    weight = torch.zeros(len(classes), x.shape[1], dtype=torch.float64, device=x.device, requires_grad=True)
    bias = torch.zeros(len(classes), dtype=torch.float64, device=x.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=STEPS, tolerance_grad=TOLERANCE, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        errors = (each * F.cross_entropy(x @ weight.T + bias, y, reduction="none")).sum()
        # Dividing by n keeps the minimum and makes the gradient tolerance independent of n.
        value = (errors + penalty / 2 * weight.square().sum()) / len(y)
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(objective)
    return Probe(mean, scale, weight.detach(), bias.detach(), classes)


def cross_predict(
    retain: tuple[Tensor, Tensor],
    forget: tuple[Tensor, Tensor],
    halves: Tensor,
    removed_classes: Tensor,
    classes: int,
    *,
    penalty: float = PENALTY,
) -> tuple[Tensor, Probe]:
    """Predict the forget samples with a probe that was not fitted on them.

    The probe is fitted on the retained samples. If whole classes were removed, one half of their forget samples is
    added, and the probe predicts the other half (two-fold cross-fitting).

    Args:
        retain: Features (n, d) and labels (n,) of retained samples.
        forget: Features (m, d) and labels (m,) of forget samples.
        halves: 0 or 1 per forget sample (m,).
        removed_classes: Classes among the forget samples that `retain` lacks.
        classes: Number of classes.
        penalty: L2 weight decay, > 0.

    Returns:
        Probabilities (m, classes) of the forget samples, and one of the fitted probes.
    """
    features, labels = forget
    if len(removed_classes) == 0:
        probe = fit_probe(*retain, penalty=penalty)
        return probe.probabilities(features, classes), probe
    probabilities = torch.zeros(len(features), classes, dtype=torch.float64)
    for half in (0, 1):
        in_fit = torch.isin(labels, removed_classes) & (halves != half)
        x, y = torch.cat([retain[0], features[in_fit]]), torch.cat([retain[1], labels[in_fit]])
        probe = fit_probe(x, y, penalty=penalty)
        probabilities[halves == half] = probe.probabilities(features[halves == half], classes)
    return probabilities, probe
