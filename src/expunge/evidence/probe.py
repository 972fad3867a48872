"""A linear probe: the classifier that a fresh, best-fitting last layer would be on frozen features.

Sources    Alain and Bengio, ICLR workshop 2017, arXiv:1610.01644; for unlearning: Gao et al., 2026, arXiv:2604.08271
Notation   X (n, d) features, y (n,) classes, w_i = n / (k n_y) so that each of the k classes weighs the same

    minimise over W (C, d), b (C,):   sum_i w_i CE(W x_i + b, y_i) + penalty / 2 ||W||^2

Features are brought to zero mean and unit variance per dimension, by those that the probe is fitted on. The problem
is strictly convex in W, so the result depends on neither a seed nor an order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

PENALTY = 10.0  # strong enough that the probability of an unseen sample is not 0 or 1
STEPS = 200  # of L-BFGS
TOLERANCE = 1e-5  # of the gradient of the mean objective; the norm of W is then right to about 1e-3


@dataclass(frozen=True, eq=False)
class Probe:
    """A fitted probe; classes that it was not fitted on have no probability."""

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor
    classes: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """(n, k) in the order of `classes`, float64."""
        return (features.double() - self.mean) / self.scale @ self.weight.T + self.bias

    def probabilities(self, features: Tensor, classes: int) -> Tensor:
        """(n, classes), 0 in the columns of classes that it was not fitted on."""
        found = torch.zeros(len(features), classes, dtype=torch.float64, device=features.device)
        found[:, self.classes] = self.logits(features).softmax(1)
        return found


def fit_probe(features: Tensor, labels: Tensor, *, penalty: float = PENALTY) -> Probe:
    """The probe of features (n, d) and labels (n,), n >= 1, in float64 on the features' device; penalty > 0."""
    x = features.detach().double()
    classes, y = labels.to(x.device).unique(return_inverse=True)
    mean, scale = x.mean(0), x.std(0, unbiased=False)
    scale = torch.where(scale > 1e-8 * (1 + mean.abs()), scale, torch.ones_like(scale))  # a dead unit stays at 0
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
        # The mean has the same minimum and keeps the gradient's size, thus the tolerance, free of n.
        value = (errors + penalty / 2 * weight.square().sum()) / len(y)
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(objective)
    return Probe(mean, scale, weight.detach(), bias.detach(), classes)


def cross_read(
    kept: tuple[Tensor, Tensor],
    forgotten: tuple[Tensor, Tensor],
    halves: Tensor,
    gone: Tensor,
    classes: int,
    *,
    penalty: float = PENALTY,
) -> tuple[Tensor, Probe]:
    """Probabilities (m, classes) of the forgotten samples by a probe that did not see them; and one such probe.

    kept, forgotten: (features, labels). halves: 0 or 1 per forgotten sample; gone: classes among the forgotten that
    `kept` lacks. The probe is fitted on `kept` alone; where classes are gone, on `kept` and, of these classes, the
    samples of one half, and it reads the other half.
    """
    features, labels = forgotten
    if len(gone) == 0:
        probe = fit_probe(*kept, penalty=penalty)
        return probe.probabilities(features, classes), probe
    found = torch.zeros(len(features), classes, dtype=torch.float64)
    for half in (0, 1):
        shown = torch.isin(labels, gone) & (halves != half)
        x, y = torch.cat([kept[0], features[shown]]), torch.cat([kept[1], labels[shown]])
        probe = fit_probe(x, y, penalty=penalty)
        found[halves == half] = probe.probabilities(features[halves == half], classes)
    return found, probe
