"""Train a model: the original that will have to forget, or any reference."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from expunge.api.prepare import (
    as_module,
    as_splits,
    check_compile,
    check_fit,
    check_trainable,
    compiling,
    pick_device,
    warm_up,
)
from expunge.api.result import Result, versions
from expunge.core.distributed import current
from expunge.core.needs import Needs
from expunge.core.options import build, to_dict
from expunge.core.run import Precision, Progress, Run
from expunge.models.checkpoint import weights_hash
from expunge.training.loop import train_model
from expunge.training.precision import resolve_precision
from expunge.training.recipe import Recipe


def train(
    model: Any,
    data: Any,
    *,
    recipe: Recipe | Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: Precision | None = None,
    compile: bool = False,
    budget_seconds: float | None = None,
    progress: Callable[[Progress], None] | None = None,
    resume: Path | None = None,
) -> Result:
    """Train a copy of `model` on `data` with cross-entropy; the given model stays as it is.

    data: an Expunge split, a map-style data set, or (X, y). recipe: a `Recipe` or its options; default `Recipe()`.
    compile: compile the model's passes (`torch.compile`), worth its minute only in long trainings of models that do
    not take the channels-last layout. resume: a state file; a training that was killed goes on after its last finished
    epoch, with the same result.
    """
    chosen = make_recipe(recipe)
    target = pick_device(device)
    source = as_module(model)
    check_trainable(source)
    split = as_splits({"train": data})["train"]
    check_fit(source, {"train": split}, target)
    check_compile(compile, current())
    run = Run(
        seed=seed,
        device=target,
        precision=resolve_precision(precision or chosen.precision, source, split, chosen.batch_size, target),
        compile=compile,
        budget_seconds=budget_seconds,
        label="train",
        progress=progress,
        world=current(),
    )
    student = copy.deepcopy(source)
    start = weights_hash(student)
    warm_up()
    began = time.perf_counter()
    devices = [torch.cuda.current_device()] if target.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), compiling():
        train_model(student, split, chosen, run, resume=resume)
        run.synchronize()
    seconds = time.perf_counter() - began
    home = next((p.device for p in source.parameters()), target)
    student.to(home).train(source.training)
    return Result(
        model=student,
        history=run.history,
        seconds=seconds,
        status=run.status,
        needs=Needs(retain="labels", weights=False, recipe=True),
        facts={
            "kind": "train",
            "recipe": to_dict(chosen),
            "seed": seed,
            "device": str(target),
            "precision": run.precision,
            **({"processes": run.world.size} if run.world.several else {}),
            "data": {"train": split.content_hash()},
            "sizes": {"train": len(split)},
            "start": start,
            "versions": versions(),
        },
        stages=run.stages,
        notes=run.notes,
    )


def make_recipe(recipe: Recipe | Mapping[str, Any] | None) -> Recipe:
    if isinstance(recipe, Recipe):
        return recipe
    return build(Recipe, dict(recipe or {}), "recipe")
