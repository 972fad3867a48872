"""Workspaces around a model that was trained in shards (SISA): what a request costs there, and fulfilling it exactly.

The folder of the training is outside of the workspace and is changed: its checkpoints that saw a forgotten sample are
deleted before anything else happens, so such a fulfilment cannot be rolled back. It can be taken up after a kill.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from expunge.api.prepare import pick_device
from expunge.api.result import Result, versions
from expunge.core.errors import UsageError
from expunge.core.needs import Needs
from expunge.core.options import build, to_dict
from expunge.core.run import Progress, Run
from expunge.data.split import Split
from expunge.training.ensemble import Ensemble
from expunge.training.recipe import Recipe
from expunge.training.shards import PLAN, read_plan
from expunge.training.sisa import Cost, ShardedTraining


def ensemble_like(base: Callable[[], nn.Module], state: Mapping[str, Tensor], folder: Path) -> Ensemble:
    """An ensemble with as many models as `state` has weights for; how it votes stands in the training's plan."""
    count = len({name.split(".")[1] for name in state if name.startswith("models.")})
    if not count:
        raise UsageError("the checkpoint is not that of a sharded training; leave out `shards`, or give its ensemble.")
    return Ensemble([base() for _ in range(count)], _open_plan(folder)["sharding"]["aggregate"]).eval()


def recipe_of(folder: Path) -> Recipe:
    """What the training in a folder is done by."""
    return build(Recipe, _open_plan(folder)["recipe"], "recipe")


def cost_of(folder: Path, base: nn.Module, known: Split, forget: Split) -> Cost:
    """What `forget_exactly` would have to train. known: samples of the version in force, `forget` among them."""
    return ShardedTraining.load(folder, base, known).forget_cost(forget)


def forget_exactly(
    folder: Path,
    base: nn.Module,
    known: Split,
    forget: Split,
    *,
    original: str,
    device: str,
    progress: Callable[[Progress], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Result:
    """Train again what saw the samples; those that are out of the plan already (after a kill) are not asked for.

    known: samples of the version in force, `forget` among them. original: hash of that version.
    """
    left = {name for shard in _open_plan(folder)["shards"] for part in shard for name in part}
    training = ShardedTraining.load(folder, base, known)
    there = [name for name in forget.ids.tolist() if name in left]
    run = Run(seed=training.seed, device=pick_device(device), progress=progress, cancelled=cancelled, label="sisa")
    began = time.perf_counter()
    model = training.forget(there, run) if there else training.train(run)
    return Result(
        model=model,
        history=run.history,
        seconds=time.perf_counter() - began,
        status="finished",
        needs=Needs(retain="labels", weights=False, recipe=True),
        facts={
            "kind": "unlearn",
            "method": "sisa",
            "options": to_dict(training.sharding),
            "seed": training.seed,
            "device": str(run.device),
            "recipe": to_dict(training.recipe),
            "data": {"forget": forget.content_hash()},
            "sizes": {"forget": len(forget), "retain": len(left - set(forget.ids.tolist()))},
            "original": original,
            "versions": versions(),
        },
        notes=run.notes,
        details=run.details,
    )


def _open_plan(folder: Path) -> Mapping[str, Any]:
    if not (folder / PLAN).is_file():
        raise UsageError(f"{folder} holds no sharded training ({PLAN} is missing); correct `shards` in the settings.")
    return read_plan(folder)
