"""Make a model forget: one call for every method, handing each only what it declares."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from expunge.api.effect import measure_effect
from expunge.api.prepare import (
    as_module,
    as_splits,
    check_compile,
    check_disjoint,
    check_fit,
    check_trainable,
    compiling,
    pick_device,
    warm_up,
)
from expunge.api.result import Result, versions
from expunge.api.safety import apply_safely, set_guard
from expunge.api.train import make_recipe
from expunge.core.distributed import current
from expunge.core.errors import UsageError
from expunge.core.needs import Needs
from expunge.core.options import to_dict
from expunge.core.run import Precision, Progress, Run
from expunge.core.seeds import derive
from expunge.data.split import Split
from expunge.methods.base import Method, make_method
from expunge.methods.problem import Problem
from expunge.models.anatomy import reset_parameters
from expunge.models.checkpoint import weights_hash
from expunge.training.precision import resolve_precision
from expunge.training.recipe import Recipe


def unlearn(
    model: Any,
    *,
    forget: Any = None,
    retain: Any = None,
    method: str | Method = "scrub",
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
    measure: bool = True,
    **options: Any,
) -> Result:
    """Return a new model that has forgotten `forget`; the given model is never changed.

    model: any `nn.Module` that returns logits (batch, classes). forget, retain, validation: an Expunge split, a
    map-style PyTorch data set, or (X, y). method: a name ("scrub"), a preset ("scrub/small-rb") or an instance;
    further keywords are its options. validation: held-out samples, needed by `rewind` and by tuning rules.
    recipe, initial: how the model was trained and from which weights, for methods that need them (retraining).
    compile: compile the passes of the model that learns (`torch.compile`): worth its minute only in long runs on
    models that do not take the channels-last layout. cache: folder where retrained references are kept by content.

    The method is handed only what it declares (`result.needs`). What it did is told by `result.effect`, measured on
    `validation`, which the method need not be handed, by one forward pass (none with measure=False); nothing forgotten
    and a damaged model also warn. Raises `UsageError` for requests that cannot be right, `DivergedError` if
    weights become infinite.
    """
    chosen = make_method(method, **options)
    needs = chosen.needs
    target = pick_device(device)
    source = as_module(model)
    check_trainable(source)
    splits = as_splits({"forget": forget, "retain": retain, "validation": validation})
    doubles = check_disjoint(splits)
    _check_given(chosen, needs, splits)
    classes = check_fit(source, splits, target)
    check_compile(compile, current())
    known_recipe = make_recipe(recipe)
    some = next(iter(splits.values()))
    run = Run(
        seed=seed,
        device=target,
        precision=resolve_precision(precision, source, some, known_recipe.batch_size, target),
        compile=compile,
        budget_seconds=budget_seconds,
        label=chosen.card.name,
        progress=progress,
        cancelled=cancelled,
        cache=cache,
        notes=doubles,
        world=current(),
    )
    if needs.recipe and recipe is None:
        run.notes.append("no training recipe was given; the default one was used: pass recipe=... of the original.")
    problem = restrict(source, splits, needs, classes, known_recipe, _state(initial), seed)
    warm_up()
    began = time.perf_counter()
    with compiling():
        set_guard(chosen, splits, run)
        result, chosen, run = apply_safely(chosen, problem, run)
    seconds = time.perf_counter() - began + run.borrowed
    effect = None
    if measure:
        effect = measure_effect(
            source,
            result,
            forget=splits.get("forget"),
            retain=splits.get("retain"),
            held_out=splits.get("validation"),
            device=target,
            seed=seed,
        )
        if chosen.card.name != "original":  # there nothing is meant to happen
            effect.warn()
    return Result(
        model=result,
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
            **({"processes": run.world.size} if run.world.several else {}),
            "precision": run.precision,
            "recipe": to_dict(known_recipe) if needs.recipe else None,
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


def restrict(
    model: nn.Module,
    splits: Mapping[str, Split],
    needs: Needs,
    num_classes: int,
    recipe: Recipe,
    initial: Mapping[str, Tensor] | None,
    seed: int,
) -> Problem:
    """The problem with exactly what is declared: no other split, no label, no trained weight is reachable from it."""
    handed = {}
    for name in ("forget", "retain", "validation"):
        access = getattr(needs, name)
        if access != "none" and name in splits:
            handed[name] = splits[name] if access == "labels" else splits[name].without_labels()
    if needs.labelled:
        handed["labelled"] = some_labels(splits["retain"], needs.labelled, seed)
    if not needs.weights:
        model = copy.deepcopy(model)
        if initial is not None:
            model.load_state_dict(initial)
        else:
            reset_parameters(model, seed=seed)
    some = next(iter(splits.values()))
    return Problem(
        model=model,
        num_classes=num_classes,
        input_shape=some.input_shape,
        needs=needs,
        forgotten=len(splits["forget"]) if "forget" in splits else 0,
        _splits=handed,
        _recipe=recipe if needs.recipe else None,
        _initial=initial if needs.initial or not needs.weights else None,
    )


def some_labels(retain: Split, amount: float, seed: int) -> Split:
    """A random part of the retained samples with labels; no other label is reachable from it."""
    count = max(1, int(amount * len(retain))) if amount < 1 else int(amount)
    if count > len(retain):
        raise UsageError(f"labels of {count} retained samples are asked for, but there are only {len(retain)}.")
    order = torch.randperm(len(retain), generator=torch.Generator().manual_seed(derive(seed, "label budget")))
    chosen = retain.index[order[:count]].sort().values
    labels = torch.zeros(len(retain.store), dtype=torch.long)
    labels[chosen] = retain.take(chosen).y
    return replace(retain.without_labels().take(chosen, "labelled"), labels=labels)


def _check_given(chosen: Method, needs: Needs, splits: Mapping[str, Split]) -> None:
    if not splits:
        raise UsageError("nothing to forget: pass forget=... (a data set, (X, y) or a split).")
    for name in ("forget", "retain", "validation"):
        access = getattr(needs, name)
        if access == "none":
            continue
        if name not in splits:
            why = "rewinding" if name == "validation" and chosen.rewinds else chosen.card.name
            raise UsageError(f"{why} needs {name} data ({access}); pass {name}=... or choose another method.")
        wants_labels = access == "labels" or (name == "retain" and needs.labelled > 0)
        if wants_labels and not splits[name].has_labels:
            raise UsageError(f"{chosen.card.name} needs labels of the {name} data; choose a label-free method.")


def _state(initial: Mapping[str, Tensor] | nn.Module | None) -> Mapping[str, Tensor] | None:
    return initial.state_dict() if isinstance(initial, nn.Module) else initial


__all__ = ["restrict", "unlearn"]
