"""Train and eval modes and the BatchNorm policy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from expunge.core.errors import UsageError

BatchNormMode = Literal["train", "frozen"]


def training_mode(model: nn.Module, batchnorm: BatchNormMode = "train") -> None:
    """Set train mode; with `frozen`, BatchNorm uses its running statistics and leaves them as they are."""
    model.train()
    if batchnorm == "frozen":
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside the block; every module's own mode comes back after it, also after an exception."""
    with _modes_restored(model.modules()):
        model.eval()
        yield


@contextmanager
def frozen_batchnorm(model: nn.Module) -> Iterator[None]:
    """BatchNorm layers use their running statistics and leave them alone; the rest keeps its mode.

    A call of `model.train()` inside the block would undo it: set the mode of the whole model before.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    with _modes_restored(norms):
        for norm in norms:
            norm.eval()
        yield


class LoneSample:
    """BatchNorm in train mode cannot normalise one value per channel: for such a batch it uses its running statistics.

    A forget set of one sample, and the last sample of an epoch, would otherwise end in an error of PyTorch. The running
    statistics stay as they are in such a pass. Hooks before and after the layer; copies of a model have them as well.
    """

    def __init__(self, name: str, allowed: bool) -> None:
        self.name = name
        self.allowed = allowed

    def before(self, norm: nn.Module, inputs: tuple[Any, ...]) -> None:
        x = inputs[0] if inputs else None
        # With several processes the layer has another `forward`, which takes its statistics over all of them.
        if not norm.training or "forward" in norm.__dict__ or not isinstance(x, Tensor) or x.dim() < 2:
            return
        if x.numel() != x.shape[1]:
            return
        if not self.allowed or not isinstance(norm.running_mean, Tensor):
            raise UsageError(
                f"BatchNorm layer `{self.name}` gets one value per channel in a batch of one sample and cannot "
                "normalise it; choose a batch size of at least 2."
            )
        norm.training = False
        norm._lone_sample = True  # type: ignore[assignment]

    def after(self, norm: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if norm.__dict__.pop("_lone_sample", False):
            norm.training = True


@contextmanager
def lone_samples(model: nn.Module, *, allowed: bool = True) -> Iterator[None]:
    """Inside the block, `model` and copies of it take batches of one sample in train mode (see `LoneSample`).

    allowed: False makes such a batch a `UsageError`: for trainings whose batches are all of one sample, where running
    statistics would never be learnt.
    """
    handles = []
    for name, norm in model.named_modules():
        if isinstance(norm, _BatchNorm):
            rule = LoneSample(name, allowed)
            handles.append(norm.register_forward_pre_hook(rule.before, prepend=True))
            handles.append(norm.register_forward_hook(rule.after, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def without_lone_samples(model: nn.Module) -> None:
    """Take the hooks of `lone_samples` off, e.g. from a copy that leaves the block."""
    for norm in model.modules():
        if isinstance(norm, _BatchNorm):
            for hooks in (norm._forward_pre_hooks, norm._forward_hooks):
                for key in [k for k, hook in hooks.items() if isinstance(getattr(hook, "__self__", None), LoneSample)]:
                    del hooks[key]
                    norm._forward_hooks_always_called.pop(key, None)


@contextmanager
def _modes_restored(modules: Iterable[nn.Module]) -> Iterator[None]:
    modes = [(module, module.training) for module in modules]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
