"""Logits and features of one model in one pass: what enters the head is caught on the way to the answer."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor, nn

from expunge.core.distributed import ALONE, World
from expunge.data.split import Split
from expunge.models.anatomy import anatomy
from expunge.models.trace import Representation
from expunge.training.ensemble import Ensemble
from expunge.training.inference import predict

Points = list[tuple[nn.Module, Representation]]
"""Where features are: a point of the forward pass of a model, or of each member of an ensemble."""


def points_of(model: nn.Module, sample: Tensor) -> Points:
    """sample (B, ...): a batch to watch. Raises `UsageError` where the head cannot be told."""
    if isinstance(model, Ensemble):
        return [point for member in model.models for point in points_of(member, sample)]
    return [(model, anatomy(model, sample).representation)]


def with_features(
    model: nn.Module, split: Split, points: Points, device: torch.device, world: World = ALONE
) -> tuple[Tensor, Tensor]:
    """Logits (len(split), classes) and features (len(split), d), float32, CPU; the logits are those of `predict`."""
    with ExitStack() as stack:
        looks = [stack.enter_context(point.beside(module)) for module, point in points]
        width = 0

        def forward(x: Tensor) -> Tensor:
            nonlocal width
            logits: Tensor = model(x)
            width = logits.shape[1]
            return torch.cat([logits.float(), *(look().flatten(1).float() for look in looks)], 1)

        found = predict(model, split, device, world=world, forward=forward).cpu()
    return found[:, :width].clone(), found[:, width:].clone()
