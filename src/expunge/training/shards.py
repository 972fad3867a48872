"""Parts of sharded training: options, random shards, the recipe of a stage, checkpoints, the stored plan."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from expunge.core.errors import CheckpointError, UsageError
from expunge.core.options import Field, options
from expunge.core.seeds import torch_generator
from expunge.data.split import Split
from expunge.models.checkpoint import load_weights, save_weights
from expunge.training.recipe import Recipe

FORMAT = 1
PLAN = "sharding.json"


@options
class Sharding:
    """How the data are split into shards, and how the models' outputs are aggregated."""

    shards: int = Field(5, ge=1, description="models, each trained on its own part of the data")
    slices: int = Field(4, ge=1, description="parts of a shard that are added in turn, each with a checkpoint")
    aggregate: Literal["mean", "vote"] = Field("mean", description="mean of the softmax outputs, or majority vote")
    start: Literal["drawn", "given"] = Field(
        "drawn", description="initial weights: random per shard, or the model's, if it was pre-trained on other data"
    )
    stage_epochs: int | None = Field(None, ge=1, description="epochs per stage; none: 2 epochs / (slices + 1)")


def cut(data: Split, sharding: Sharding, seed: int) -> list[list[Tensor]]:
    """Random shards, and slices of these; sizes differ by at most one sample.

    Args:
        data: the training samples.
        sharding: number of shards and slices.
        seed: of the order of the samples.

    Returns:
        Shard -> slice -> positions in the store, ascending.

    Raises:
        UsageError: if there are fewer samples than slices.
    """
    if len(data) < sharding.shards * sharding.slices:
        raise UsageError(
            f"{len(data)} samples cannot be cut into {sharding.shards} shards of {sharding.slices} slices; "
            "every slice needs at least one."
        )
    order = data.index[torch.randperm(len(data), generator=torch_generator(seed, "shards"))]
    shards = order.tensor_split(sharding.shards)
    return [[part.sort().values for part in shard.tensor_split(sharding.slices)] for shard in shards]


def stage_recipe(recipe: Recipe, sharding: Sharding) -> Recipe:
    """The recipe of one stage: fewer epochs, and milestones at the same fractions of them."""
    epochs = sharding.stage_epochs or max(1, round(2 * recipe.epochs / (sharding.slices + 1)))
    scale = epochs / max(recipe.epochs, 1)
    return replace(recipe, epochs=epochs, milestones=tuple(round(scale * m) for m in recipe.milestones))


class Checkpoints:
    """Weights per (shard, stage), in memory or as files.

    Args:
        folder: where the files are; None: in memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._kept: dict[tuple[int, int], Mapping[str, Tensor]] = {}

    def put(self, model: nn.Module, shard: int, stage: int) -> None:
        """Store the weights of `model`."""
        path = self._path(shard, stage)
        if path is not None:
            save_weights(model, path)
        else:
            self._kept[shard, stage] = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}

    def get(self, model: nn.Module, shard: int, stage: int) -> nn.Module:
        """Load a checkpoint into `model`, in place."""
        path = self._path(shard, stage)
        if path is not None:
            return load_weights(model, path)
        model.load_state_dict(self._kept[shard, stage])
        return model

    def newest(self, shard: int, last: int) -> int:
        """The last stage up to `last` to which checkpoints are complete; 0 stands for the initial weights."""
        return next((stage - 1 for stage in range(1, last + 1) if not self._has(shard, stage)), last)

    def drop(self, shard: int, stages: range) -> None:
        """Delete the checkpoints of some stages of a shard."""
        for stage in stages:
            self._kept.pop((shard, stage), None)
            path = self._path(shard, stage)
            if path is not None:
                path.unlink(missing_ok=True)

    def _has(self, shard: int, stage: int) -> bool:
        path = self._path(shard, stage)
        return (shard, stage) in self._kept if path is None else path.exists()

    def _path(self, shard: int, stage: int) -> Path | None:
        return None if self.folder is None else self.folder / f"shard-{shard}-stage-{stage}.safetensors"


def write_plan(folder: Path, plan: Mapping[str, Any]) -> None:
    """Write the plan of a sharded training atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{PLAN}.part"
    part.write_text(json.dumps({"format": FORMAT, **plan}), encoding="utf-8")
    part.replace(folder / PLAN)


def read_plan(folder: Path) -> dict[str, Any]:
    """Read the plan of a sharded training; raises `CheckpointError` if there is none that this version can read."""
    path = folder / PLAN
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not a sharded training ({error}); name the folder of one.") from None
    if not isinstance(plan, dict) or plan.get("format") != FORMAT:
        raise CheckpointError(f"{path} was written by another version of Expunge; train again.")
    return plan
