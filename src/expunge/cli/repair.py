"""What `repair` does: a model and a list of suspected labels in; a repaired model, a corrected list and a page out."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from expunge.api.result import Result
from expunge.cli import console, inputs
from expunge.cli.fields import typed_options
from expunge.cli.folder import WEIGHTS, claim, finished, read_json
from expunge.cli.jobs import Repair
from expunge.core.errors import UsageError, nearest
from expunge.core.needs import Needs
from expunge.core.options import option_names, to_dict
from expunge.data.cache import cache_root
from expunge.methods import METHODS
from expunge.methods.base import Method, make_method
from expunge.metrics.base import ORIGINAL, REFERENCE
from expunge.models.checkpoint import weights_hash
from expunge.repair.correction import NONE, Correction, make_correction
from expunge.repair.effects import REPAIRED
from expunge.repair.files import PAGE, RECORD, write_repair
from expunge.repair.measure import measure_repair
from expunge.repair.mending import clear_state, learning, mend, train_again
from expunge.repair.repair import Repaired
from expunge.repair.suspects import read_suspects
from expunge.training.recipe import Recipe


def repair(job: Repair) -> None:
    """Repair, measure, write; stages that an earlier, interrupted call finished are not done again."""
    method = _method(job)
    training = inputs.training_of(job.checkpoint)
    recipe = inputs.recipe_of(job.recipe, training)
    if job.retrain and recipe is None:
        raise UsageError(
            "a model cannot be trained on the corrected data without the recipe of the original; give --recipe "
            "file.yaml, or a checkpoint that `expunge train` made."
        )
    if isinstance(method, Method):
        job = dataclasses.replace(job, options=to_dict(method))
    job, data = inputs.data_for(job, job.checkpoint)
    suspects = read_suspects(job.suspects, data.train, below=job.below, top=job.top)
    correction = make_correction(data.train, suspects, job.action, method)
    trained = inputs.original(job, job.checkpoint, data=data, train=data.train)
    original = trained.model
    learn = _learning(job, recipe)
    claim(job)
    if not inputs.is_trained_on(trained):
        console.say("note: these are not exactly the data that the result.json beside the checkpoint tells of.")
    common: dict[str, Any] = {"seed": job.seed, "device": job.device}
    untrained = inputs.for_references(trained)
    record = _finished(job, correction, original)
    if record is not None:
        stored_record = read_json(job.out / RECORD)
        if stored_record is not None:
            console.say(f"{job.out} already holds this repair; nothing to do.")
            _print(job, stored_record)
            return
        console.say(f"{job.out} already holds the repaired model; measuring it.")
        result = _restored(job, record, inputs.build(job, data.train, weights=job.out / WEIGHTS))
    else:
        with console.progress() as progress:
            result = mend(
                trained if isinstance(method, Method) and method.needs.initial else untrained, correction,
                method=method, learn=learn, progress=progress, state=job.out, **common,
            )  # fmt: skip
        result = dataclasses.replace(result, facts={**result.facts, "training": training})
        result.save(job.out, parents=False)
    models: dict[str, Any] = {ORIGINAL: original, REPAIRED: result}
    if job.retrain:
        with console.progress() as progress:
            models[REFERENCE] = train_again(
                untrained, correction, recipe=recipe, progress=progress,
                cache=None if job.force else cache_root(), **common,
            )  # fmt: skip
    effects = measure_repair(models, correction, test=data.test, k=job.neighbours, **common)
    facts_shown = [("Data", f"{job.data}, {len(data.test) if data.test else 0:,} test samples"), ("Model", job.model)]
    record = write_repair(
        job.out, Repaired(result, correction, effects), title=f"Label repair of {job.checkpoint}",
        facts=facts_shown, more={"settings": to_dict(job)}, raw=job.raw,
    )  # fmt: skip
    clear_state(job.out)  # the finished model stands beside it
    _print(job, record)


def _method(job: Repair) -> Method | str:
    """The method with its options; the word `none` for no unlearning."""
    if job.method == NONE:
        if job.options:
            name = next(iter(job.options))
            raise UsageError(f"repair has no option `{name}`; {nearest(name, option_names(Repair))}.")
        return NONE
    cls = METHODS.load(job.method.partition("/")[0])
    method = make_method(job.method, **typed_options(cls, job.options, commands=option_names(Repair)))
    if not method.same_tensors or method.card.name == "original":
        raise UsageError(f"{method.card.name} does not change {job.checkpoint}; choose another method.")
    return method


def _learning(job: Repair, recipe: Recipe | None) -> Recipe | None:
    """The recipe of the short training on corrected labels; None where nothing is relabelled."""
    if (job.learn_epochs is not None or job.learn_rate is not None) and job.action != "relabel":
        raise UsageError("`learn_epochs` and `learn_rate` are of the action `relabel`; give --action relabel.")
    if job.action != "relabel":
        return None
    if recipe is None:
        raise UsageError(
            "the short training follows the recipe of the original, which is not known; give --recipe file.yaml, or a "
            "checkpoint that `expunge train` made."
        )
    usual = learning(recipe)
    epochs = usual.epochs if job.learn_epochs is None else job.learn_epochs
    return dataclasses.replace(usual, epochs=epochs, lr=job.learn_rate or usual.lr)


def _finished(job: Repair, correction: Correction, original: nn.Module) -> dict[str, Any] | None:
    """The record of a finished repair in the folder; None if there is none, or one that `--overwrite` may replace.

    `UsageError` if data, list or checkpoint changed under the same names since.
    """
    record = finished(job)
    if record is None:
        return None
    data = record.get("data", {})
    for what, before, now in (
        ("the data", data.get("train"), correction.train.content_hash()),
        ("the list of suspects", data.get("suspects"), correction.suspects.content_hash()),
        ("the checkpoint", record.get("original"), weights_hash(original)),
    ):
        if before != now and not job.overwrite:
            raise UsageError(
                f"{what} changed since {job.out} was written; pass --overwrite or choose another folder with --out."
            )
        if before != now:
            (job.out / RECORD).unlink(missing_ok=True)
            return None
    return record


def _restored(job: Repair, record: dict[str, Any], model: nn.Module) -> Result:
    """The result whose record an earlier call saved."""
    excluded = ("format", "status", "seconds", "stages", "needs", "weights", "notes", "details", "history")
    return Result(
        model=model,
        needs=Needs(**record["needs"]),
        facts={name: value for name, value in record.items() if name not in excluded},
        **{name: record[name] for name in ("history", "seconds", "status", "stages", "notes", "details")},
    )


def _print(job: Repair, record: dict[str, Any]) -> None:
    models = list(record["suspects"])
    grid = console.table("samples", "number in %", *models, right=tuple(models))
    for row in record["overall"]:
        grid.add_row(row["split"], "accuracy", *(_percent(row["models"][model]) for model in models))
    for row in record["pairs"]:
        for key, name in (("ic_error", "IC-ERR"), ("fgt_error", "FGT-ERR")):
            label = f"{row['split']}: {', '.join(row['names'])}"
            grid.add_row(label, name, *(_percent(row["models"][model][key]) for model in models))
    console.out().print(grid)
    for sentence in record["sentences"]:
        console.out().print(sentence, soft_wrap=True)
    for note in record["notes"]:
        console.say(f"note: {note}")
    console.out().print(f"report: {job.out / PAGE}", soft_wrap=True)


def _percent(value: dict[str, float]) -> str:
    return f"{100 * value['share']:.1f}"
