"""Sharpness-aware steps (SAM): the gradient is taken where the loss is worst within a small ball around the weights.

Paper      Foret, Kleiner, Mobahi, Neyshabur: Sharpness-Aware Minimization, ICLR 2021, arXiv:2010.01412

    e = rho g / |g|,  g the gradient at w (all weights together);   the step at w uses the gradient at w + e

Cost       two passes forward and backward per step instead of one
BatchNorm's running statistics are those of the pass at w; the pass at w + e leaves them alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def sharp_gradients(backward: Callable[[], None], model: nn.Module, rho: float) -> None:
    """Leave in `p.grad` the gradient that a step uses.

    Args:
        backward: computes gradients of a loss into `p.grad`; it is called once, or twice for rho > 0.
        model: whose weights are moved in between and put back.
        rho: radius of the ball, L2 over all weights, >= 0; 0: an ordinary gradient.
    """
    model.zero_grad(set_to_none=True)
    backward()
    if rho == 0:
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    weights = [p.detach() for p in model.parameters() if p.grad is not None]  # they share memory with the parameters
    if not gradients:
        return
    norm = torch.stack(torch._foreach_norm(gradients)).norm().clamp(min=1e-12)
    before = [w.clone() for w in weights]
    torch._foreach_add_(weights, [rho / norm * g for g in gradients])
    model.zero_grad(set_to_none=True)
    try:
        with _statistics_kept(model):
            backward()
    finally:
        torch._foreach_copy_(weights, before)


@contextmanager
def _statistics_kept(model: nn.Module) -> Iterator[None]:
    """Inside, BatchNorm normalises as its mode says, and its running statistics stay as they are."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    kept = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, _, count in kept:
        norm.momentum = 0.0
        norm.num_batches_tracked = None if count is None else count.clone()
    try:
        yield
    finally:
        for norm, momentum, count in kept:
            norm.momentum, norm.num_batches_tracked = momentum, count
