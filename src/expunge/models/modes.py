"""Train and eval modes and the BatchNorm policy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

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


@contextmanager
def _modes_restored(modules: Iterable[nn.Module]) -> Iterator[None]:
    modes = [(module, module.training) for module in modules]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
