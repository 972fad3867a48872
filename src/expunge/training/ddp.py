"""Forward passes of a model in training, in one process or in several with PyTorch's DistributedDataParallel.

DDP overlaps the reduction of gradients with the backward pass. It assumes that the loss is a mean over equal shards,
which does not hold here (short last batches, sums, a logsumexp over the batch). So outputs are gathered first
(`World.all_gather`): each process computes the loss of the global batch, which may be any function of the outputs, and
the mean of their gradients is the gradient of that loss. Methods keep their equations.

BatchNorm in train mode uses the statistics of the global batch. `torch.nn.SyncBatchNorm` does not support the CPU and
would change the model's classes, so the sums are exchanged here, on any device. Other modules that mix samples are not
supported. Dropout masks differ between processes: the distribution is that of one process, the numbers are not.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from expunge.core.distributed import World
from expunge.core.run import Run
from expunge.data.split import Batch
from expunge.models.modes import evaluation_mode


class Passes:
    """Forward passes of a global batch: `passes(batch)` is `model(x)` for all its rows, in every process.

    Draw batches with `world=run.world`. Create it once per training, after choosing which parameters are trained; all
    processes start with the weights of the main process.

    Args:
        model: the model that is trained.
        run: its processes.
        forward: what to compute instead of the logits, e.g. `Anatomy.features`.
    """

    def __init__(self, model: nn.Module, run: Run, forward: Callable[[Tensor], Tensor] | None = None) -> None:
        self._world = run.world
        self._model = model
        self._forward: Callable[[Tensor], Tensor] = forward or model
        self._shared: DistributedDataParallel | None = None
        self._norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]

    def __call__(self, batch: Batch) -> Tensor:
        """Outputs (B, ...) of the global batch."""
        if not self._world.is_sharded(len(batch)):
            return self._run(batch.x)
        with shared_statistics(self._norms, self._world):
            return batch.gather(self._run(batch.x))

    def joint(self, *batches: Batch) -> tuple[Tensor, ...]:
        """Outputs of several batches in one pass; only with BatchNorm in eval mode, which does not mix samples."""
        sizes = [len(batch.x) for batch in batches]
        parts = self._run(torch.cat([batch.x for batch in batches])).split(sizes)
        return tuple(batch.gather(part) for batch, part in zip(batches, parts, strict=True))

    def _run(self, x: Tensor) -> Tensor:
        if self._world.size == 1:
            return self._forward(x)
        if self._shared is None:
            # Weights that a pass does not use (the head, if representations are computed) keep `grad = None`. Searching
            # for them in every pass costs time, and DDP warns if there are none: enabled only if there are some.
            self._shared = DistributedDataParallel(
                _ForwardOf(self._model, self._forward),
                find_unused_parameters=self._world.any(_has_unused(self._model, self._forward, x[:2])),
            )
            # Statistics are equal anyway; copying them would break two passes before one step. Set as an attribute,
            # because the argument has another name from PyTorch 2.13 on.
            self._shared.broadcast_buffers = False
        out: Tensor = self._shared(x)
        return out


def _has_unused(model: nn.Module, forward: Callable[[Tensor], Tensor], sample: Tensor) -> bool:
    """Whether `forward` does not use all parameters that are trained."""
    trained = [p for p in model.parameters() if p.requires_grad]
    with evaluation_mode(model), torch.enable_grad():
        gradients = torch.autograd.grad(forward(sample).sum(), trained, allow_unused=True)
    return any(gradient is None for gradient in gradients)


class _ForwardOf(nn.Module):
    """The module that DDP wraps: a model with another forward function."""

    def __init__(self, model: nn.Module, forward: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model = model
        self._function = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._function(x)


@contextmanager
def shared_statistics(norms: list[_BatchNorm], world: World) -> Iterator[None]:
    """Within the context, these BatchNorm layers normalise by the statistics of the global batch."""
    changed = [norm for norm in norms if norm.training or norm.running_mean is None]
    for norm in changed:
        norm.forward = functools.partial(batch_norm, norm, world)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm in changed:
            del norm.forward


def batch_norm(norm: _BatchNorm, world: World, x: Tensor) -> Tensor:
    """BatchNorm in train mode over a batch that is sharded over the processes.

    Normalises by mean and biased variance per channel of the global batch; the running variance is updated by the
    unbiased one, as in PyTorch.

    Args:
        norm: the layer; its running statistics are updated.
        world: the processes.
        x: the shard (b, C, ...) of this process.

    Returns:
        (b, C, ...), in the type of x.
    """
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    dims = [0, *range(2, x.dim())]
    shape = [1, -1] + [1] * (x.dim() - 2)
    own = wide.new_tensor([wide.numel() / wide.shape[1]])
    sums = _sum(torch.cat([wide.sum(dims), own]), world)
    count = sums[-1].detach()
    mean = sums[:-1] / count
    centred = wide - mean.view(shape)
    variance = _sum(centred.square().sum(dims), world) / count
    if norm.training:
        _update_statistics(norm, mean.detach(), variance.detach() * (count / (count - 1)))
    y = centred * (variance + norm.eps).rsqrt().view(shape)
    if norm.affine:
        y = y * norm.weight.view(shape) + norm.bias.view(shape)
    return y.to(x.dtype)


def _update_statistics(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Update the running statistics, if there are any, as PyTorch does."""
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    norm.num_batches_tracked.add_(1)
    momentum = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean), momentum)
    norm.running_var.lerp_(variance.to(norm.running_var), momentum)


class _Sum(torch.autograd.Function):
    """Sum over the processes; the backward pass sums the gradients over them too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, world: World) -> Tensor:
        ctx.world = world
        return world.all_reduce(x.clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.world.all_reduce(gradient.contiguous().clone()), None


def _sum(x: Tensor, world: World) -> Tensor:
    total: Tensor = _Sum.apply(x, world)  # type: ignore[no-untyped-call]
    return total
