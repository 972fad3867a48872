"""Weight importance (MAS) of a set of samples, and the penalty that frees important weights.

Paper      Aljundi et al., ECCV 2018, arXiv:1711.09601 (MAS); used inverted by Cha et al., AAAI 2024

    l(B) = mean over B of ||f(x)||_2 of the logits       I_p = sum over batches |dl/dp| |B| / N
    scaled per tensor to [0, 1] by its minimum and maximum; a constant tensor counts as 0; Omega = 1 - scaled
    penalty  (s/2) sum_p Omega_p (w_p - w_ref,p)^2        its gradient is added to the gradients directly

Published: |.| per batch, in train mode of BatchNorm. `per_sample` takes |.| per sample, as MAS does, in eval mode.
The authors' code never sets the gradients of its copy back to zero, so that batch b enters with the sum of the
gradients of the batches 1..b; `summed` does that. With one batch (k <= batch size) it makes no difference.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from expunge.core.run import Run
from expunge.data.split import Split
from expunge.models.modes import evaluation_mode, training_mode


def importance(
    model: nn.Module,
    split: Split,
    run: Run,
    *,
    batch_size: int,
    per_sample: bool = False,
    batchnorm: str = "train",
    summed: bool = False,
) -> dict[str, Tensor]:
    """Inverted importance Omega of every parameter for the samples of `split`; labels are not read.

    Args:
        model: changed in place (gradient flags, and BatchNorm statistics in train mode): pass a copy.
        split: the samples.
        run: its device.
        batch_size: samples per batch.
        per_sample: whether gradients are taken per sample, in eval mode.
        batchnorm: "train" or "frozen".
        summed: whether gradients accumulate over the batches, as in the authors' code.

    Returns:
        Parameter name -> values in [0, 1] in its shape: 0 for the most important weights, 1 for unimportant ones.
    """
    model.requires_grad_(True)
    names = [name for name, _ in model.named_parameters()]
    total = [torch.zeros_like(p) for p in model.parameters()]
    accumulated = [torch.zeros_like(p) for p in model.parameters()] if summed else None

    def add(x: Tensor, weight: int) -> None:
        gradients = torch.autograd.grad(
            model(x).float().norm(dim=1).mean(), list(model.parameters()), allow_unused=True
        )
        for number, gradient in enumerate(gradients):
            if gradient is not None:
                used = gradient if accumulated is None else accumulated[number].add_(gradient)
                total[number].add_(used.abs(), alpha=weight)

    if per_sample:
        with evaluation_mode(model):
            for batch in split.batches(1, device=run.device):
                add(batch.x, 1)
    else:
        training_mode(model, "frozen" if batchnorm == "frozen" else "train")
        for batch in split.batches(batch_size, device=run.device):
            add(batch.x, len(batch))
    return {name: 1 - scaled(value / len(split)) for name, value in zip(names, total, strict=True)}


def scaled(values: Tensor) -> Tensor:
    """Values scaled to [0, 1] by their minimum and maximum; all zero for a constant tensor."""
    low, high = values.min(), values.max()
    return torch.zeros_like(values) if float(high - low) == 0 else (values - low) / (high - low)


class ImportancePull:
    """Adds the gradient of (strength/2) sum Omega (w - w_ref)^2 to the gradients of a model.

    Args:
        model: its current weights are w_ref.
        omega: weights of the penalty by parameter name, in the parameters' shapes.
        strength: >= 0.
    """

    def __init__(self, model: nn.Module, omega: Mapping[str, Tensor], strength: float) -> None:
        self.strength = strength
        self._parameters = list(model.parameters())
        self._omega = [omega[name].to(p) for name, p in model.named_parameters()]
        self._reference = [p.detach().clone() for p in self._parameters]

    def add_gradient(self) -> None:
        """Add the gradient of the penalty to `p.grad` of every parameter that has one."""
        triples = zip(self._parameters, self._omega, self._reference, strict=True)
        used = [(p, p.grad, o, r) for p, o, r in triples if p.grad is not None]
        gaps = torch._foreach_sub([p.detach() for p, _, _, _ in used], [r for _, _, _, r in used])
        pulls = torch._foreach_mul(gaps, [o for _, _, o, _ in used])
        torch._foreach_add_([g for _, g, _, _ in used], list(pulls), alpha=self.strength)
