"""Several classifiers combined into one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Ensemble(nn.Module):
    """An ensemble with the interface of one classifier: logits (B, classes) whose softmax is the aggregate.

    Args:
        models: the members.
        aggregate: "mean", the mean of the softmax outputs, or "vote", the shares of votes with ties broken by the mean.
    """

    def __init__(self, models: Sequence[nn.Module], aggregate: str = "mean") -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        self.aggregate = aggregate

    def forward(self, x: Tensor) -> Tensor:
        outputs = torch.stack([model(x).float().log_softmax(1) for model in self.models])
        mean = outputs.logsumexp(0) - math.log(len(outputs))
        if self.aggregate == "mean":
            return mean
        classes = outputs.shape[2]
        votes = nn.functional.one_hot(outputs.argmax(2), classes).float().mean(0)
        tie_break = 1e-3 / len(outputs)  # too small to outweigh one vote
        return ((1 - tie_break) * votes + tie_break * mean.exp()).clamp_min(1e-30).log()
