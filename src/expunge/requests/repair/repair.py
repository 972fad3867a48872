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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd
import torch
from torch import Tensor, nn

from expunge import api
from expunge.api.prepare import as_module, as_splits, check_fit, pick_device
from expunge.api.result import Result, versions, write_text
from expunge.api.train import make_recipe
from expunge.core import parallel
from expunge.core.errors import CheckpointError, UsageError, unknown
from expunge.core.needs import Needs
from expunge.core.options import to_dict
from expunge.core.run import Progress
from expunge.data.split import Split
from expunge.methods.base import Method
from expunge.metrics.base import ORIGINAL, REFERENCE, Evaluation
from expunge.models.checkpoint import load_weights, save_weights, weights_hash
from expunge.requests.repair import effects, neighbours
from expunge.requests.repair.suspects import Suspects, read_suspects
from expunge.training.recipe import Recipe

Action = Literal["forget", "relabel"]
NONE = "none"  # the method that skips unlearning, for `relabel`
LEARN_EPOCHS = 3
UNLEARNED, LEARNING, KEY = "unlearned", "learn.state", "mend.json"  # files of a folder that keeps finished stages


@dataclass(frozen=True, eq=False)
class Correction:
    """A training set and what is to become of it.

    doubtful: the suspects with their given labels. trusted: all other samples. corrected: `trusted` and, for
    `relabel`, the suspects with their suggested labels, in the order of the data.
    """

    train: Split
    suspects: Suspects
    action: Action

    @property
    def doubtful(self) -> Split:
        return self.train.take(self.suspects.positions, "forget")

    @property
    def trusted(self) -> Split:
        return self.train.take(self.train.index[~self._in(self.suspects.positions)], "retain")

    @property
    def relabelled(self) -> Tensor:
        """Bool (n,): suspects that stay in the data, with another label."""
        return self.suspects.relabelled if self.action == "relabel" else torch.zeros_like(self.suspects.relabelled)

    @property
    def corrected(self) -> Split:
        labels = (self.train.labels if self.train.labels is not None else self.train.store.labels).clone()
        again = self.relabelled
        labels[self.suspects.positions[again]] = self.suspects.suggested[again]
        dropped = self._in(self.suspects.positions[~again])
        return self.train.with_labels(labels).take(self.train.index[~dropped], "corrected")

    def frame(self) -> pd.DataFrame:
        """One row per training sample: id, position, given, now (empty where forgotten), action."""
        table = pd.DataFrame(
            {
                "id": self.train.ids,
                "position": self.train.index.numpy(),
                "given": self.train.y.numpy(),
                "now": pd.array(self.train.y.numpy(), dtype="Int64"),
                "action": "kept",
            }
        )
        for chosen, action in ((~self.relabelled, "forgotten"), (self.relabelled, "relabelled")):
            rows = table["position"].isin(self.suspects.positions[chosen].tolist())
            table.loc[rows, "action"] = action
        table.loc[table["action"] == "forgotten", "now"] = pd.NA
        moved = dict(zip(self.suspects.positions.tolist(), self.suspects.suggested.tolist(), strict=True))
        again = table["action"] == "relabelled"
        table.loc[again, "now"] = table.loc[again, "position"].map(moved).astype("Int64")
        return table

    def _in(self, positions: Tensor) -> Tensor:
        return torch.isin(self.train.index, positions)


@dataclass(frozen=True, eq=False)
class Effects:
    """What is measured after a repair. pairs, classes, overall, suspects: see `requests.effects`; compared: see
    `requests.neighbours.compare`; neighbours, still: the rows of neighbours.csv and still_suspect.csv."""

    pairs: list[dict[str, Any]]
    classes: list[dict[str, Any]]
    overall: list[dict[str, Any]]
    suspects: dict[str, dict[str, Any]]
    compared: list[dict[str, Any]]
    neighbours: pd.DataFrame
    still: pd.DataFrame
    notes: tuple[str, ...] = ()

    def details(self) -> dict[str, Any]:
        """JSON-ready, without the two tables of samples."""
        names = ("pairs", "classes", "overall", "suspects", "compared")
        return {name: getattr(self, name) for name in names} | {"still_suspect": len(self.still)}


@dataclass(frozen=True, eq=False)
class Repaired:
    """result: the repaired model and how it was made. correction: the data. effects: before and after."""

    result: Result
    correction: Correction
    effects: Effects

    @property
    def model(self) -> nn.Module:
        return self.result.model

    def labels(self) -> pd.DataFrame:
        """The corrected list: one row per training sample."""
        return self.correction.frame()

    def save(self, folder: str | Path, *, title: str = "Label repair") -> Path:
        """Write the model, the corrected list, the tables and the page; each file appears whole or not at all."""
        from expunge.requests.repair.files import write_repair

        self.result.save(folder)
        write_repair(Path(folder), self, title=title)
        return Path(folder)


def repair_labels(
    model: Any,
    train: Any,
    suspects: Any,
    *,
    action: Action = "forget",
    method: str | Method = "scrub",
    test: Any = None,
    validation: Any = None,
    below: float | None = None,
    top: int | None = None,
    learn: Recipe | Mapping[str, Any] | None = None,
    recipe: Recipe | Mapping[str, Any] | None = None,
    initial: Mapping[str, Tensor] | nn.Module | None = None,
    retrain: bool = False,
    k: int = 10,
    seed: int = 0,
    device: str = "auto",
    progress: Callable[[Progress], None] | None = None,
    cache: Path | None = None,
    **options: Any,
) -> Repaired:
    """Repair a model that learned wrong labels, and measure whom else that changed; the given model stays as it is.

    train: what the model was trained on, with the labels it was given. suspects: a file, a DataFrame, or ids, see
    `requests.suspects`; below, top: only the worst by score. action: "forget" the suspects by `method` and its
    `options`, or "relabel" them: then a short training follows on the corrected data, by the recipe `learn`
    (default: `learning(recipe)`); method "none" skips the unlearning before it. recipe, initial: how the model was
    trained and from which weights. retrain: also compare with a model trained on the corrected data from the start;
    kept in `cache`. k: neighbours per suspect that are looked at. test: without it, effects are told on retained
    samples alone.
    """
    splits = as_splits({"train": train, "test": test})
    found = read_suspects(suspects, splits["train"], below=below, top=top)
    correction = make_correction(splits["train"], found, action, method)
    if retrain and recipe is None:
        raise UsageError("a model cannot be trained again without the recipe of the original; pass recipe=...")
    _check_k(k)
    result = mend(
        model, correction, method=method, learn=learn, recipe=recipe, initial=initial, validation=validation,
        seed=seed, device=device, progress=progress, **options,
    )  # fmt: skip
    models: dict[str, Any] = {ORIGINAL: model, effects.REPAIRED: result}
    if retrain and recipe is not None:
        models[REFERENCE] = train_again(
            model, correction, recipe=recipe, initial=initial, seed=seed, device=device, progress=progress, cache=cache
        )
    measured = measure_repair(models, correction, test=splits.get("test"), k=k, seed=seed, device=device)
    return Repaired(result, correction, measured)


def make_correction(train: Split, suspects: Suspects, action: Action, method: str | Method) -> Correction:
    """Checked: `UsageError` for an unknown action, or one that would do nothing."""
    if action not in get_args(Action):
        raise unknown("action", action, get_args(Action))
    if action == "relabel" and not bool(suspects.relabelled.any()):
        raise UsageError(
            "no suspect has a suggested label, so there is nothing to relabel; give the list a column "
            "`suggested_label`, or choose the action `forget`."
        )
    if action == "forget" and method == NONE:
        raise UsageError('method "none" would change nothing; choose a method, or the action `relabel`.')
    if parallel.current().several:
        raise UsageError("a label repair is the work of one process; run it without torchrun.")
    return Correction(train, suspects, action)


def learning(recipe: Recipe | Mapping[str, Any] | None = None) -> Recipe:
    """The short training on corrected labels that follows an original of this recipe."""
    known = make_recipe(recipe)
    return replace(known, epochs=LEARN_EPOCHS, lr=known.lr / 5, schedule="constant", l2_reference=0.0)


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
    source = as_module(model)
    check_fit(source, {"train": correction.train}, pick_device(device))
    chosen = learning(recipe) if learn is None else make_recipe(learn)
    if state is not None:
        _claim(state, source, correction, {"method": str(method), "options": options, "learn": chosen, "seed": seed})
    stages = []
    if method != NONE:
        stages.append(
            _kept(state, source, lambda: api.unlearn(
                source, forget=correction.doubtful, retain=correction.trusted, validation=validation, method=method,
                recipe=recipe, initial=initial, seed=seed, device=device, progress=progress, **options,
            ))
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
    return _together(source, correction, stages, method, chosen, seed)


def train_again(
    model: Any,
    correction: Correction,
    *,
    recipe: Recipe | Mapping[str, Any],
    initial: Mapping[str, Tensor] | nn.Module | None = None,
    seed: int = 0,
    device: str = "auto",
    progress: Callable[[Progress], None] | None = None,
    cache: Path | None = None,
) -> Result:
    """A model of the same architecture and recipe, trained on the corrected data alone; kept by content."""
    return api.unlearn(
        model, retain=correction.corrected, method="retrain", recipe=recipe, initial=initial, seed=seed,
        device=device, progress=progress, cache=cache,
    )  # fmt: skip


def measure_repair(
    models: Mapping[str, Any],
    correction: Correction,
    *,
    test: Split | None = None,
    k: int = 10,
    seed: int = 0,
    device: str = "auto",
) -> Effects:
    """Effects of a repair. models: "original", "repaired" and, if there is one, "retrained"."""
    _check_k(k)
    suspects, notes = correction.suspects, list(correction.suspects.notes)
    splits = {"forget": correction.doubtful, "retain": correction.trusted, **({} if test is None else {"test": test})}
    target = pick_device(device)
    modules = {name: as_module(model) for name, model in models.items()}
    evaluation = Evaluation(modules, splits, device=target, seed=seed)
    pairs = effects.pair_effects(evaluation, suspects)
    if not pairs:
        notes.append("the list suggests no labels, so that no pair of classes has an IC-ERR or FGT-ERR.")
    if test is None:
        notes.append("no test data were given: effects are told on retained samples, which the model was trained on.")
    compared, table = [], pd.DataFrame({"group": []})
    try:
        near = neighbours.find_neighbours(
            modules[ORIGINAL], splits["forget"], splits["retain"], k=k, seed=seed, device=target
        )
    except UsageError as error:
        notes.append(f"neighbours were not looked for: {error}")
    else:
        compared = neighbours.compare(evaluation, near)
        table = neighbours.table(evaluation, near, suspects.ids)
    return Effects(
        pairs=pairs,
        classes=effects.class_effects(evaluation, suspects),
        overall=effects.overall(evaluation),
        suspects=effects.suspect_effects(evaluation, suspects),
        compared=compared,
        neighbours=table,
        still=still_suspect(evaluation, suspects),
        notes=tuple(notes),
    )


def still_suspect(evaluation: Evaluation, suspects: Suspects) -> pd.DataFrame:
    """Suspects that the repaired model still calls by the given label, the surest first; readable as suspects again."""
    logits = evaluation.logits(effects.REPAIRED, "forget")
    still = (logits.argmax(1) == suspects.given).numpy()
    suggested = pd.array(suspects.suggested.numpy(), dtype="Int64")
    suggested[suspects.suggested.numpy() < 0] = pd.NA
    table = pd.DataFrame(
        {
            "id": suspects.ids,
            "position": suspects.positions.numpy(),
            "given_label": suspects.given.numpy(),
            "suggested_label": suggested,
            "label_quality": suspects.score,
            "confidence_in_given": effects.confidence(logits, suspects.given).numpy(),
        }
    )
    return table[still].sort_values(["confidence_in_given", "position"], ascending=[False, True], ignore_index=True)


def _check_k(k: int) -> None:
    if k < 1:
        raise UsageError(f"`k`, the neighbours per suspect, must be at least 1, got {k}.")


def _together(
    source: nn.Module, correction: Correction, stages: list[Result], method: str | Method, learn: Recipe, seed: int
) -> Result:
    """One result of what one or two stages did."""
    needs = Needs(weights=False)
    for stage in stages:
        needs = needs | stage.needs
    unlearned = stages[0].facts if method != NONE else {}
    suspects = correction.suspects
    data = {"train": correction.train, "corrected": correction.corrected}
    names = ([] if method == NONE else ["unlearn"]) + (["learn"] if correction.action == "relabel" else [])
    return Result(
        model=stages[-1].model,
        history=[row for stage in stages for row in stage.history],
        seconds=sum(stage.seconds for stage in stages),
        status=stages[0].status,
        needs=needs,
        facts={
            "kind": "repair",
            "action": correction.action,
            "method": unlearned.get("method", NONE),
            "options": unlearned.get("options", {}),
            "learn": to_dict(learn) if correction.action == "relabel" else None,
            "seed": seed,
            "device": stages[-1].facts["device"],
            "data": {name: split.content_hash() for name, split in data.items()}
            | {"suspects": suspects.content_hash()},
            "sizes": {
                "suspects": len(suspects),
                "relabelled": int(correction.relabelled.sum()),
                **{name: len(split) for name, split in data.items()},
            },
            "original": weights_hash(source),
            "versions": versions(),
        },
        stages={name: stage.seconds for name, stage in zip(names, stages, strict=True)},
        notes=[note for stage in stages for note in stage.notes],
    )


def clear_state(state: Path) -> None:
    """Remove what `mend` keeps in the folder `state` for a call that goes on."""
    for name in (f"{UNLEARNED}.json", f"{UNLEARNED}.safetensors", LEARNING, KEY):
        (state / name).unlink(missing_ok=True)


def _claim(state: Path, source: nn.Module, correction: Correction, how: Mapping[str, Any]) -> None:
    """Stages that another work left in the folder (other data, suspects, weights, options) are removed."""
    known = {
        "action": correction.action,
        "data": correction.train.content_hash(),
        "suspects": correction.suspects.content_hash(),
        "original": weights_hash(source),
        "how": {name: repr(value) for name, value in how.items()},
    }
    text = json.dumps(known, sort_keys=True) + "\n"
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
