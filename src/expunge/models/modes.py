"""Train and eval mode, and the treatment of BatchNorm."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from expunge.core.errors import UsageError

BatchNormMode = Literal["train", "frozen"]


def training_mode(model: nn.Module, batchnorm: BatchNormMode = "train") -> None:
    """Set train mode; with `frozen`, BatchNorm uses its running statistics and does not update them."""
    model.train()
    if batchnorm == "frozen":
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode within the context; every module's mode is restored afterwards, also after an exception."""
    with _modes_restored(model.modules()):
        model.eval()
        yield


@contextmanager
def frozen_batchnorm(model: nn.Module) -> Iterator[None]:
    """Within the context BatchNorm layers use their running statistics without updating them.

    A call of `model.train()` within the context would undo it: set the mode of the whole model before.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    with _modes_restored(norms):
        for norm in norms:
            norm.eval()
        yield


class LoneSample:
    """Hooks with which a BatchNorm layer in train mode accepts one value per channel, by its running statistics.

    A forget set of one sample, and a last batch of one sample, would otherwise raise an error in PyTorch. The running
    statistics are not updated in such a pass. Copies of a model have the hooks as well.

    Args:
        name: of the layer, for messages.
        allowed: whether such batches are accepted; else they raise `UsageError`.
    """

    def __init__(self, name: str, allowed: bool) -> None:
        self.name = name
        self.allowed = allowed

    def before(self, norm: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Forward pre-hook: switch the layer to eval mode for a batch of one value per channel."""
        x = inputs[0] if inputs else None
        # With several processes the layer has another `forward`, with the statistics of the global batch.
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
        """Forward hook: switch it back."""
        if norm.__dict__.pop("_lone_sample", False):
            norm.training = True


@contextmanager
def lone_samples(model: nn.Module, *, allowed: bool = True) -> Iterator[None]:
    """Within the context `model` and its copies accept batches of one sample in train mode (see `LoneSample`).

    With `allowed=False` such a batch raises `UsageError`: for trainings with batches of one sample throughout, in which
    running statistics would never be updated.
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
    """Remove the hooks of `lone_samples`, e.g. from a copy that is used outside the context."""
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
