"""Label repair: a trained model forgets suspected labels or learns the right ones, and everybody else is looked at.

Forget     the suspects are forgotten with their given labels, by any method; all other samples are retained
Relabel    the same first (or not: method "none"), because weights that hold a wrong answer keep part of it; then a
           short training on the retained samples and on the suspects with their suggested labels. A suspect for whom
           no label is suggested is only forgotten

The short training is the original's recipe with `LEARN_EPOCHS` epochs at a fifth of its rate, constant: long enough to
pass every corrected sample a few times, too short to be the training that a repair is to spare.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from expunge import api
from expunge.api.experiment import Experiment
from expunge.api.prepare import as_classifier, check_fit, pick_device
from expunge.api.result import Result
from expunge.api.saved import as_trained
from expunge.api.trained import TrainedModel, initial_state
from expunge.core.errors import CheckpointError, UsageError
from expunge.core.files import write_text
from expunge.core.needs import Needs
from expunge.core.options import to_dict
from expunge.core.run import Progress
from expunge.core.version import versions
from expunge.methods.base import Method
from expunge.models.checkpoint import load_weights, save_weights, weights_hash
from expunge.repair.correction import NONE, Correction
from expunge.training.recipe import Recipe, make_recipe

LEARN_EPOCHS = 3
UNLEARNED, LEARNING, KEY = "unlearned", "learn.state", "mend.json"  # files of a folder that keeps finished stages


def learning(recipe: Recipe | Mapping[str, Any]) -> Recipe:
    """The short training on corrected labels that follows an original of this recipe."""
    base = make_recipe(recipe)
    return replace(base, epochs=LEARN_EPOCHS, lr=base.lr / 5, schedule="constant", l2_reference=0.0)


def mend(
    model: Any,
    correction: Correction,
    *,
    method: str | Method = "scrub",
    learn: Recipe | Mapping[str, Any] | None = None,
    recipe: Recipe | Mapping[str, Any] | None = None,
    initial: Mapping[str, Tensor] | nn.Module | None = None,
    validation: Any = None,
    seed: int = 0,
    device: str = "auto",
    progress: Callable[[Progress], None] | None = None,
    state: Path | None = None,
    **options: Any,
) -> Result:
    """The repaired model. state: a folder that keeps finished stages, so that a stopped call goes on."""
    trained = as_trained(model)
    source = trained.model
    source, _ = as_classifier(source, {"train": correction.train}, pick_device(device), trains=True)
    check_fit(source, {"train": correction.train}, pick_device(device))
    recipe_used = trained.recipe if recipe is None else recipe
    chosen = None
    if correction.action == "relabel":
        if learn is None and recipe_used is None:
            raise UsageError(
                "the recipe of the short training is not known; pass learn=..., or recipe=... of the original, from "
                "which it follows."
            )
        chosen = make_recipe(learn) if learn is not None else learning(recipe_used or {})
    if state is not None:
        _claim(state, source, correction, {"method": str(method), "options": options, "learn": chosen, "seed": seed})
    stages = []
    if method != NONE:
        stages.append(
            _kept(state, source, lambda: Experiment(
                trained, correction.doubtful, method, seed, correction.trusted, device, progress=progress
            ).unlearn(validation=validation, wrong_labels=True, recipe=recipe, initial=initial, **options))
        )  # fmt: skip
    elif options:
        raise UsageError(f'method "none" has no option `{next(iter(options))}`; leave it out.')
    if correction.action == "relabel":
        stages.append(
            api.train(
                stages[0] if stages else source, correction.corrected, recipe=chosen, seed=seed, device=device,
                progress=progress, resume=None if state is None else state / LEARNING,
            )
        )  # fmt: skip
    return _together(trained, correction, stages, method, chosen, seed)


def train_again(
    model: Any,
    correction: Correction,
    *,
    recipe: Recipe | Mapping[str, Any] | None = None,
    initial: Mapping[str, Tensor] | nn.Module | None = None,
    seed: int = 0,
    device: str = "auto",
    progress: Callable[[Progress], None] | None = None,
    cache: Path | None = None,
) -> Result:
    """A model of the same architecture and recipe, trained on the corrected data alone; kept by content."""
    trained = as_trained(model)
    if recipe is not None:
        trained = replace(trained, recipe=make_recipe(recipe))
    if initial is not None:
        trained = replace(trained, initial=initial_state(initial, trained.model))
    return Experiment(
        trained, None, seed=seed, retain=correction.corrected, device=device, cache=cache, progress=progress
    ).reference()


def _together(
    trained: TrainedModel,
    correction: Correction,
    stages: list[Result],
    method: str | Method,
    learn: Recipe | None,
    seed: int,
) -> Result:
    """One result of what one or two stages did."""
    needs = Needs(weights=False)
    for stage in stages:
        needs = needs | stage.needs
    unlearned = stages[0].facts if method != NONE else {}
    suspects = correction.suspects
    data = {"train": correction.train, "corrected": correction.corrected}
    names = ([] if method == NONE else ["unlearn"]) + (["learn"] if correction.action == "relabel" else [])
    last = stages[-1]
    return Result(
        model=last.model,
        train=last.train,
        held_out=trained.held_out,
        test=trained.test,
        recipe=trained.recipe,
        initial=None if trained.facts.get("drawn") else trained.initial,  # drawn anew from the seed
        seed=trained.seed,
        parent=trained,
        forget=correction.doubtful,
        history=[row for stage in stages for row in stage.history],
        seconds=sum(stage.seconds for stage in stages),
        status=stages[0].status,
        needs=needs,
        facts={
            "kind": "repair",
            "action": correction.action,
            "method": unlearned.get("method", NONE),
            "options": unlearned.get("options", {}),
            "learn": None if learn is None else to_dict(learn),
            "seed": seed,
            "device": stages[-1].facts["device"],
            "data": {name: split.content_hash() for name, split in data.items()}
            | {"suspects": suspects.content_hash()},
            "sizes": {
                "suspects": len(suspects),
                "relabelled": int(correction.relabelled.sum()),
                **{name: len(split) for name, split in data.items()},
            },
            "original": weights_hash(trained.model),
            "versions": versions(),
        },
        stages={name: stage.seconds for name, stage in zip(names, stages, strict=True)},
        notes=[note for stage in stages for note in stage.notes],
    )


def clear_state(state: Path) -> None:
    """Remove what `mend` keeps in the folder `state` for a call that goes on."""
    for name in (f"{UNLEARNED}.json", f"{UNLEARNED}.safetensors", LEARNING, KEY):
        (state / name).unlink(missing_ok=True)


def _claim(state: Path, source: nn.Module, correction: Correction, settings: Mapping[str, Any]) -> None:
    """Stages that another work left in the folder (other data, suspects, weights, options) are removed."""
    facts = {
        "action": correction.action,
        "data": correction.train.content_hash(),
        "suspects": correction.suspects.content_hash(),
        "original": weights_hash(source),
        "how": {name: repr(value) for name, value in settings.items()},
    }
    text = json.dumps(facts, sort_keys=True) + "\n"
    path = state / KEY
    if not path.exists() or path.read_text(encoding="utf-8", errors="replace") != text:
        clear_state(state)
        write_text(path, text)


def _kept(state: Path | None, source: nn.Module, work: Callable[[], Result]) -> Result:
    """The unlearned model of an earlier, stopped call, or `work()`, which is then kept in the folder `state`."""
    if state is None:
        return work()
    weights, facts = state / f"{UNLEARNED}.safetensors", state / f"{UNLEARNED}.json"
    if weights.exists() and facts.exists():  # the facts are written last
        try:
            stored = json.loads(facts.read_text(encoding="utf-8"))
            stored["needs"] = Needs(**stored["needs"])
            return Result(model=load_weights(copy.deepcopy(source), weights), **stored)
        except (CheckpointError, LookupError, TypeError, ValueError):
            facts.unlink()  # damaged: done again
    done = work()
    names = ("history", "seconds", "status", "stages", "notes", "details")
    record = {name: getattr(done, name) for name in names} | {"facts": dict(done.facts)}
    record["needs"] = {name: getattr(done.needs, name) for name in done.needs.__dataclass_fields__}
    save_weights(done.model, weights)
    write_text(facts, json.dumps(record, default=str) + "\n")
    return done
