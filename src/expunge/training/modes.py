"""Train/eval modes and BatchNorm policy, always restored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

BatchNormMode = Literal["train", "frozen"]


def training_mode(model: nn.Module, batchnorm: BatchNormMode = "train") -> None:
    """Train mode; with `frozen`, BatchNorm uses its running statistics and leaves them as they are."""
    model.train()
    if batchnorm == "frozen":
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside the block; every module's own mode comes back after it, also after an exception."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
