"""Train a model: the original that will have to forget, or any reference."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from expunge.api.prepare import (
    as_classifier,
    as_splits,
    check_compile,
    check_fit,
    check_trainable,
    compiling,
    pick_device,
    warm_up,
)
from expunge.api.result import Result
from expunge.api.saved import as_trained
from expunge.api.trained import check_unseen, hold_out, initial_state
from expunge.core.distributed import current
from expunge.core.errors import UsageError
from expunge.core.needs import Needs
from expunge.core.options import to_dict
from expunge.core.run import Precision, Progress, Run
from expunge.core.seeds import global_generators
from expunge.core.version import versions
from expunge.methods.base import Method
from expunge.models.checkpoint import state_hash
from expunge.models.contract import returned
from expunge.training.loop import train_model
from expunge.training.precision import resolve_precision
from expunge.training.recipe import Recipe, make_recipe


def train(
    model: Any,
    data: Any,
    *,
    held_out: Any = None,
    test: Any = None,
    recipe: Recipe | Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: Precision | None = None,
    compile: bool = False,
    budget_seconds: float | None = None,
    progress: Callable[[Progress], None] | None = None,
    resume: Path | None = None,
    importance: str | Method | None = None,
) -> Result:
    """Train a copy of `model` on `data` with cross-entropy; the given model stays as it is.

    Args:
        model: The module to start from (or a trained model, result or folder, to go on from its weights); it returns
            logits (batch, classes).
        data: An Expunge split, a map-style data set, or (X, y) with X (N, ...) and whole class numbers y (N,).
        held_out: Samples that are not trained on, kept with the result to tell what an unlearning did and for methods
            that validate (`rewind`): data, or a fraction of `data` below 1 that is drawn by `seed`.
        test: Samples that are not trained on, kept with the result for measuring.
        recipe: A `Recipe` or a mapping of its options; default `Recipe()`.
        seed: Of the order of samples, augmentation and dropout, >= 0.
        device: `auto` (the first GPU, else the CPU), `cpu`, `cuda` or `cuda:N`.
        precision: "float32" or "bfloat16" for the passes; default: that of the recipe.
        compile: Compile the model's passes (`torch.compile`), worth its minute only in long trainings of models that
            do not take the channels-last layout.
        budget_seconds: Stop after the epoch that exceeds it; the status is then "budget".
        progress: Called with the state of the run after each epoch.
        resume: A state file; a training that was killed goes on after its last finished epoch, with the same result.
        importance: A method of the SSD family ("ssd", "lfssd/det"): what it needs of the training data is computed
            once and kept with the result, so that it can forget with the forget set alone (`importance=stored`).

    Returns:
        The trained model, which knows its data, recipe, initial weights and seed.

    Raises:
        UsageError: For an unknown option or device, or a model without trainable parameters.
        DataError: If data and model do not fit together, or unseen samples are among the training data.
        DivergedError: If the weights become infinite.
    """
    chosen = make_recipe(recipe)
    target = pick_device(device)
    given = as_trained(model).model
    source = given
    check_trainable(source)
    fraction = held_out if isinstance(held_out, float) else None
    splits = as_splits({"train": data, "validation": None if fraction is not None else held_out, "test": test})
    if "train" not in splits:
        raise UsageError("nothing to train on: pass data (a split, a map-style data set, or (X, y)).")
    whole = splits["train"]
    if fraction is not None:
        splits["train"], splits["validation"] = hold_out(whole, fraction, seed)
    split = splits["train"]
    check_unseen(splits)
    source, remarks = as_classifier(source, splits, target, trains=True)
    check_fit(source, splits, target)
    check_compile(compile, current())
    run = Run(
        seed=seed,
        device=target,
        precision=resolve_precision(precision or chosen.precision, source, split, chosen.batch_size, target),
        compile=compile,
        budget_seconds=budget_seconds,
        label="train",
        progress=progress,
        notes=remarks,
        world=current(),
    )
    student = copy.deepcopy(source)
    start = initial_state(source, source)
    assert start is not None  # noqa: S101  # a module was given
    warm_up()
    began = time.perf_counter()
    with global_generators(target) as waited, compiling():
        run.waited(waited)
        train_model(student, split, chosen, run, resume=resume)
        run.synchronize()
    seconds = time.perf_counter() - began + run.cached_seconds
    home = next((p.device for p in source.parameters()), target)
    student.to(home).train(source.training)
    result = Result(
        model=returned(student, given),
        train=split,
        held_out=splits.get("validation"),
        test=splits.get("test"),
        recipe=chosen,
        initial=start,
        seed=seed,
        given=None if fraction is None else whole,
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
            **({"processes": run.world.size} if run.world.size > 1 else {}),
            "data": {"train": split.content_hash()},
            "sizes": {"train": len(split)},
            "start": state_hash(start),
            "versions": versions(),
        },
        stages=run.stages,
        notes=run.notes,
    )
    return result if importance is None else result.with_importance(importance, seed=seed, device=device)
