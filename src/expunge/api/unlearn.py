"""Make a model forget: one call for every method, handing each only what it declares."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from expunge.api.effect import measure_effect
from expunge.api.planning.automatic import choose, situation
from expunge.api.prepare import (
    as_classifier,
    as_splits,
    check_compile,
    check_disjoint,
    check_fit,
    check_trainable,
    compiling,
    pick_device,
    warm_up,
)
from expunge.api.result import Result
from expunge.api.safety import apply_safely, set_guard
from expunge.api.saved import as_trained
from expunge.api.selection import WAYS, select
from expunge.api.trained import TrainedModel, initial_state
from expunge.core.distributed import current
from expunge.core.errors import UsageError
from expunge.core.identity import code_hash
from expunge.core.needs import Needs
from expunge.core.options import given, to_dict
from expunge.core.resume import Resume
from expunge.core.run import Precision, Progress, Run
from expunge.core.version import versions
from expunge.data.split import Split
from expunge.methods import METHODS
from expunge.methods.base import Method, make_method
from expunge.methods.problem import restrict
from expunge.methods.scaling import Sizes
from expunge.models.checkpoint import state_hash, weights_hash
from expunge.models.contract import returned
from expunge.models.identity import model_code
from expunge.training.precision import resolve_precision
from expunge.training.recipe import Recipe, make_recipe


def unlearn(
    model: Any,
    *,
    forget: Any = None,
    retain: Any = None,
    method: str | Method = "auto",
    validation: Any = None,
    recipe: Recipe | Mapping[str, Any] | None = None,
    initial: Mapping[str, Tensor] | nn.Module | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: Precision = "auto",
    compile: bool = False,
    budget_seconds: float | None = None,
    progress: Callable[[Progress], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    cache: Path | None = None,
    resume: Path | None = None,
    measure: bool = True,
    wrong_labels: bool | None = None,
    certified: bool = False,
    **options: Any,
) -> Result:
    """Return a new model that has forgotten `forget`; the given model is never changed.

    Args:
        model: What `train`, `unlearn` or `load` returned, a `TrainedModel`, a folder that holds one, or any `nn.Module`
            that returns logits (batch, classes), of which nothing more is known. Logits inside a tuple or dictionary,
            and one logit for two classes, are read as such (`models.contract`).
        forget: Rows of the training data (whole numbers, as the data were given to `train`), a boolean mask over them,
            `expunge.ids([...])`, a scenario such as "class:3" (drawn with seed 0), what `expunge.scenario` returns, or
            data: a split, a map-style data set, (X, y).
        retain: Data to retain; default: what the model was trained on and does not forget, where that is known.
        method: "auto" (chosen by what is at hand and by what was measured, the first of `notes` says why), a name
            ("scrub"), a preset ("scrub/small-rb"), a class of your own ("my_methods.py:Mine") or an instance.
        validation: Held-out samples, needed by `rewind` and by tuning rules; default: the model's `held_out`.
        recipe: How the model was trained, for methods that need it (retraining); default: what the model knows.
        initial: The weights its training started from, a state dict or a module; default: what the model knows.
        seed: Of all draws of the method, >= 0.
        device: `auto` (the first GPU, else the CPU), `cpu`, `cuda` or `cuda:N`.
        precision: "float32" or "bfloat16", of the forward and backward passes.
        compile: Compile the passes of the model that learns (`torch.compile`): worth its minute only in long runs on
            models that do not take the channels-last layout.
        budget_seconds: Stop after the epoch that exceeds it; the status is then "budget".
        progress: Called with the state of the run after each epoch.
        cancelled: Asked between steps; the run ends with `Cancelled` once it returns true.
        cache: Folder where retrained references are kept by content.
        resume: A state file, written after epochs: the same call goes on from there, with the same result, and begins
            again where data, weights, options or code are others. It is yours to remove, with the files whose names
            begin with its own and a dot. One-shot methods, `sisa` and runs of several processes write none.
        measure: Whether to measure `effect`, on the held-out samples, by one forward pass.
        wrong_labels: Whether the labels of the samples to forget are wrong; None: found out. It decides what `auto`
            weighs, and what `effect` compares with.
        certified: With "auto": where nothing exact can be had, only a method with an (epsilon, delta) guarantee is
            taken.
        options: Options of the method.

    Returns:
        The new model. Its training data are what was retained, its parent is the given model; the method was handed
        only what it declares (`result.needs`). `effect` tells what it did; nothing forgotten and a damaged model also
        warn.

    Raises:
        UsageError: For requests that cannot be right, such as retraining without a known recipe.
        DataError: For rows, masks, ids or data that do not fit the training data or the model.
        DivergedError: If the weights become infinite.
    """
    target = pick_device(device)
    trained = as_trained(model)
    source = trained.model
    check_trainable(source)
    selected = select(trained, forget, retain)
    held_out = trained.held_out if validation is None else validation
    splits = as_splits({"forget": selected.forget, "retain": selected.retain, "validation": held_out})
    doubles = check_disjoint(splits)
    if selected.forget is None and retain is None:
        raise UsageError(f"nothing to forget: pass forget=... ({WAYS}).")
    known_recipe = trained.recipe if recipe is None else make_recipe(recipe)
    start = trained.initial if initial is None else initial_state(initial, source)
    source, remarks = as_classifier(source, splits, target, trains=True)
    why: tuple[str, ...] = ()
    if method == "auto":
        if options:
            raise UsageError(f"options ({', '.join(sorted(options))}) belong to a method; name it with method=...")
        at = situation(
            source,
            splits,
            recipe=known_recipe,
            initial=start is not None,
            wrong_labels=wrong_labels,
            budget_seconds=budget_seconds,
            certified=certified,
        )
        plan = choose(source, splits, at, target)
        chosen, why = plan.made(), (f"{plan.method} was chosen:", *plan.why)
    elif certified:
        raise UsageError("`certified` tells `auto` what to choose; leave out method=..., or `certified`.")
    else:
        chosen = make_method(METHODS.named(method) if isinstance(method, str) else method, **options)
    asked = given(chosen)
    sizes = Sizes(_count(splits.get("forget")), _count(splits.get("retain")), known_recipe, wrong_labels=wrong_labels)
    chosen = chosen.fitted(sizes)
    needs = chosen.needs
    _check_given(chosen, needs, splits)
    if needs.recipe and known_recipe is None and "recipe" not in needs.optional:
        raise UsageError(
            f"{chosen.card.name} needs the recipe that the model was trained with; pass recipe=..., or a model that "
            "knows it (expunge.train, expunge.TrainedModel.of)."
        )
    _check_importance(chosen, trained)
    classes = check_fit(source, splits, target)
    check_compile(compile, current())
    some = next(iter(splits.values()))
    run = Run(
        seed=seed,
        device=target,
        precision=resolve_precision(precision, source, some, make_recipe(known_recipe).batch_size, target),
        compile=compile,
        budget_seconds=budget_seconds,
        label=chosen.card.name,
        progress=progress,
        cancelled=cancelled,
        cache=cache,
        notes=[*([" ".join(why)] if why else []), *doubles, *remarks],
        world=current(),
    )
    if resume is not None:
        run.resume = Resume(resume, _work_key(chosen, source, splits, known_recipe, start, run))
    if start is None and (needs.initial or not needs.weights):
        run.notes.append(
            "the initial weights are not known, so fresh ones are drawn: pass initial=... to start from them."
        )
    problem = restrict(source, splits, needs, classes, known_recipe, start, seed, trained.importance)
    warm_up()
    began = time.perf_counter()
    with compiling():
        set_guard(chosen, splits, run)
        result, chosen, run = apply_safely(chosen, problem, run, rate_given="lr" in asked)
    seconds = time.perf_counter() - began + run.cached_seconds
    effect = None
    if measure:
        effect = measure_effect(
            source,
            result,
            forget=splits.get("forget"),
            retain=splits.get("retain"),
            held_out=splits.get("validation"),
            wrong_labels=wrong_labels,
            device=target,
            seed=seed,
        )
        if chosen.card.name != "original":  # there nothing is meant to happen
            effect.warn()
    return Result(
        model=returned(result, trained.model),
        train=splits.get("retain"),
        held_out=splits.get("validation"),
        test=trained.test,
        recipe=known_recipe,
        initial=start,
        seed=trained.seed,
        parent=_informed(trained, known_recipe, start),
        forget=splits.get("forget"),
        forgetting=selected.forgetting,
        history=run.history,
        seconds=seconds,
        status=run.status,
        needs=needs,
        facts={
            "kind": "unlearn",
            "method": chosen.card.name,
            "options": to_dict(chosen),
            "seed": seed,
            "device": str(target),
            **({"processes": run.world.size} if run.world.size > 1 else {}),
            "precision": run.precision,
            "recipe": to_dict(known_recipe) if known_recipe is not None else None,
            "data": {name: split.content_hash() for name, split in splits.items()},
            "sizes": {name: len(split) for name, split in splits.items()},
            "original": weights_hash(source),
            "versions": versions(),
        },
        stages=run.stages,
        notes=run.notes,
        details=run.details,
        effect=effect,
    )


def _work_key(
    chosen: Method,
    source: nn.Module,
    splits: Mapping[str, Split],
    recipe: Recipe | None,
    initial: Mapping[str, Tensor] | None,
    run: Run,
) -> str:
    """Hex sha256 over everything that decides the weights of an unlearning; a time budget only ends it."""
    facts = {
        "code": [code_hash(type(chosen), __name__), model_code(source)],
        "torch": torch.__version__,
        "architecture": repr(source),
        "original": weights_hash(source),
        "initial": None if initial is None else state_hash(initial),
        "data": {name: split.content_hash() for name, split in splits.items()},
        "method": [chosen.card.name, to_dict(chosen)],
        "recipe": None if recipe is None else to_dict(recipe),
        "run": [run.seed, str(run.device), run.precision, run.compile],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _count(split: Split | None) -> int:
    return 0 if split is None else len(split)


def _informed(trained: TrainedModel, recipe: Recipe | None, initial: Mapping[str, Tensor] | None) -> TrainedModel:
    """The model with what was told about its training in this call; itself where it knew that."""
    if (trained.recipe is None and recipe is not None) or (trained.initial is None and initial is not None):
        return replace(trained, recipe=trained.recipe or recipe, initial=trained.initial or initial)
    return trained


def _check_importance(chosen: Method, trained: TrainedModel) -> None:
    if not chosen.needs.importance:
        return
    if trained.importance is None:
        raise UsageError(
            f"{chosen.card.name} with importance=stored needs the importance of the training data, which this model "
            f"does not carry; train with importance={chosen.card.name!r}, call with_importance({chosen.card.name!r}), "
            "or choose importance=computed."
        )
    if trained.importance.weights != weights_hash(trained.model):
        raise UsageError(
            "the importance kept with the model is one of other weights; compute it again with with_importance(), or "
            "choose importance=computed."
        )


def _check_given(chosen: Method, needs: Needs, splits: Mapping[str, Split]) -> None:
    for name in ("forget", "retain", "validation"):
        access = getattr(needs, name)
        if access == "none" or (name in needs.optional and name not in splits):
            continue
        if name not in splits:
            why = "rewinding" if name == "validation" and chosen.rewinds else chosen.card.name
            how = "held_out=... to train()" if name == "validation" else "a model that knows its training data"
            raise UsageError(f"{why} needs {name} data ({access}); pass {name}=..., {how}, or choose another method.")
        wants_labels = access == "labels" or (name == "retain" and needs.labelled > 0)
        if wants_labels and not splits[name].has_labels:
            raise UsageError(f"{chosen.card.name} needs labels of the {name} data; choose a label-free method.")


__all__ = ["restrict", "unlearn"]
