"""Logits and features of a model in one pass: the input of the head is recorded during the forward pass."""

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
"""Points of the forward pass at which features are read: one per model, or per member of an ensemble."""


def points_of(model: nn.Module, sample: Tensor) -> Points:
    """Points of `model`, found on a batch `sample` (B, ...).

    Raises:
        UsageError: if the classification head cannot be identified.
    """
    if isinstance(model, Ensemble):
        return [point for member in model.models for point in points_of(member, sample)]
    return [(model, anatomy(model, sample).representation)]


def with_features(
    model: nn.Module, split: Split, points: Points, device: torch.device, world: World = ALONE
) -> tuple[Tensor, Tensor]:
    """Logits (len(split), classes) and features (len(split), d), float32, CPU; the logits are those of `predict`."""
    with ExitStack() as stack:
        readers = [stack.enter_context(point.beside(module)) for module, point in points]
        width = 0

        def forward(x: Tensor) -> Tensor:
            nonlocal width
            logits: Tensor = model(x)
            width = logits.shape[1]
            return torch.cat([logits.float(), *(read().flatten(1).float() for read in readers)], 1)

        outputs = predict(model, split, device, world=world, forward=forward).cpu()
    return outputs[:, :width].clone(), outputs[:, width:].clone()
