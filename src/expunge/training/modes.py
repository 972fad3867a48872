"""Train/eval modes and BatchNorm policy, always restored."""

from __future__ import annotations

from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from expunge.models.modes import evaluation_mode

__all__ = ["BatchNormMode", "evaluation_mode", "training_mode"]

BatchNormMode = Literal["train", "frozen"]


def training_mode(model: nn.Module, batchnorm: BatchNormMode = "train") -> None:
    """Train mode; with `frozen`, BatchNorm uses its running statistics and leaves them as they are."""
    model.train()
    if batchnorm == "frozen":
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
