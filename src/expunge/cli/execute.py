"""What `train`, `unlearn` and `evaluate` do: data and models in, the API in the middle, files and tables out."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from expunge import api
from expunge.api.effect import Effect
from expunge.api.evaluate import check_metrics
from expunge.api.experiment import Experiment, train_references
from expunge.api.planning.automatic import announce, choose, situation
from expunge.api.planning.situation import Situation
from expunge.api.prepare import as_classifier, check_disjoint, pick_device
from expunge.api.saved import Data, facts_beside
from expunge.api.trained import IMPORTANCE, INITIAL, TrainedModel
from expunge.cli import console, inputs, tables
from expunge.cli.cells import make_cells
from expunge.cli.faults import Interrupted
from expunge.cli.fields import typed_options
from expunge.cli.folder import STATE, UNLEARNING, WEIGHTS, check_code, claim, finished, user_code
from expunge.cli.jobs import Audit, Evaluate, Pooled, Train, Unlearn
from expunge.cli.work import method_class
from expunge.core import distributed
from expunge.core.errors import DivergedError, ExpungeError, UsageError, nearest, unknown
from expunge.core.files import csv_for_people, write_text
from expunge.core.options import given, option_names, to_dict
from expunge.core.resume import remove_state, state_files
from expunge.core.run import counting
from expunge.core.version import versions
from expunge.data.cache import cache_root
from expunge.data.split import Split
from expunge.evidence import audit as evidence
from expunge.evidence.goals import prepared, reference_data
from expunge.evidence.verdict import LABELS, Margins, Verdict
from expunge.methods import METHODS
from expunge.methods.base import Method, check_parallel, make_method
from expunge.models.checkpoint import weights_hash
from expunge.scenarios.base import ForgetSplit
from expunge.training.recipe import Recipe

LONG = 3600.0  # seconds beyond which a person is asked first


def train(job: Train) -> None:
    """Train, or go on with an interrupted training, or say that it is done."""
    recipe = Recipe(**typed_options(Recipe, job.options, commands=option_names(Train)))
    job = dataclasses.replace(job, options=to_dict(recipe))
    if job.on == "retain" and job.forget is None:
        raise UsageError("`--on retain` needs `--forget`: without whom is it to be trained?")
    world = distributed.current()
    world.from_main(lambda: claim(job))
    data = inputs.load_data(job, holdout=job.holdout, split_seed=job.split_seed)
    training_samples = data.train
    if job.forget is not None:
        forgetting = inputs.split_data(job, data.train)
        training_samples = forgetting.train if job.on == "all" else forgetting.retain
    done = world.from_main(lambda: finished(job))
    code = user_code(job.model)
    if done is not None:
        check_code(job.out, done, code)
        _same_data(job.out, done["training"]["data"], training_samples.content_hash())
        console.say(f"{job.out} already holds this training ({done['seconds']:.1f} s); nothing to do.")
        _print_training(done, job.out)
        return
    model = inputs.build(job, data.train, seed=job.seed, weights=job.checkpoint)
    state = job.out / STATE
    if state.exists():
        console.say(f"going on with the interrupted training in {job.out}.")
    try:
        with console.progress() as progress:
            result = api.train(
                model,
                training_samples,
                recipe=recipe,
                seed=job.seed,
                device=job.device,
                progress=progress,
                resume=state,
                importance=job.importance,
            )
    except DivergedError:
        state.unlink(missing_ok=True)  # nothing worth going on from
        raise
    training = {
        "model": job.model,
        "recipe": to_dict(recipe),
        "seed": job.seed,
        "data": training_samples.content_hash(),
        "holdout": job.holdout,
        "split_seed": job.split_seed,
        "checkpoint": str(job.checkpoint) if job.checkpoint else None,
        "start": result.facts["start"],
    }
    result = dataclasses.replace(result, facts={**result.facts, "code": code, "training": training})
    if world.is_main:
        result.save(job.out, parents=False)
        state.unlink(missing_ok=True)
    _print_training(result.record(), job.out)
    if data.test is not None:
        scores = api.evaluate(
            {"trained": result},
            retain=training_samples,
            test=data.test,
            metrics=["accuracy", "loss"],
            device=job.device,
        )
        console.out().print(tables.scores_table({"trained": scores.values["trained"]}))


def unlearn(job: Unlearn) -> None:
    """Unlearn, measure, report; parts that an earlier, interrupted call finished are not done again."""
    named = None if job.method == "auto" and not job.options else _named(job)
    world = distributed.current()
    job, data = inputs.data_for(job, job.checkpoint)
    if data.validation is not None and job.validation is None and not inputs.training_of(job.checkpoint).get("holdout"):
        held, left = len(data.validation), len(data.test or ())
        console.say(
            f"note: {held:,} of {held + left:,} test samples are held out for the method, the guard and the effect; "
            "scores use the others (`--validation` names other held-out data, `--test-held-out 0` holds none out)."
        )
    split = inputs.split_data(job, data.train)
    trained = inputs.original(job, job.checkpoint, data=data, train=split.train)
    parts = {"forget": split.forget, "retain": split.retain, "validation": data.validation}
    splits = {name: part for name, part in parts.items() if part is not None}
    at = situation(
        trained.model, splits, recipe=trained.recipe, initial=trained.initial is not None,
        budget_seconds=job.budget_seconds,
    )  # fmt: skip
    answering, _ = as_classifier(trained.model, splits, pick_device(job.device))
    method = named or _planned(answering, splits, at, job.device)
    options_given = {name: value for name, value in to_dict(method).items() if name in given(method)}
    job = dataclasses.replace(job, method=job.method if named else method.card.name, options=options_given)
    check_parallel(method, world)
    world.from_main(lambda: claim(job))
    _check_first(job, method, trained, split)
    if not inputs.is_trained_on(trained):
        console.say("note: these are not exactly the data that the result.json beside the checkpoint tells of.")
    common: dict[str, Any] = {
        "device": job.device, "seed": job.seed, "precision": job.precision,
        "cache": None if job.force else cache_root(),
    }  # fmt: skip
    record = world.from_main(lambda: finished(job))
    if record is None:
        _announce(answering, method, at, split, job)
        with console.progress() as progress, _going_on(job.out / UNLEARNING) as state:
            first = trained if method.needs.initial else inputs.for_references(trained)
            result = Experiment(first, split, method, progress=progress, **common).unlearn(
                budget_seconds=job.budget_seconds, compile=job.compile, resume=state
            )
        # of a stream: all requests together
        data_facts = {**result.facts["data"], "forget": split.forget.content_hash()}
        facts = {**result.facts, "training": trained.facts["training"], "data": data_facts}
        facts["code"] = user_code(job.model, method)
        result = dataclasses.replace(result, facts=facts)
        if world.is_main:
            result.save(job.out, parents=False)
            remove_state(job.out / UNLEARNING)
        record, unlearned = result.record(), result.model
    else:
        check_code(job.out, record, user_code(job.model, method))
        _same_data(job.out, record["data"].get("forget", ""), split.forget.content_hash())
        unlearned = inputs.build(job, data.train, weights=job.out / WEIGHTS)
        console.say(f"{job.out} already holds this result; measuring it.")
    models: dict[str, Any] = {"original": trained, "unlearned": unlearned}
    records = {"unlearned": record}
    if job.retrain:
        with console.progress() as progress:
            reference_experiment = Experiment(inputs.for_references(trained), split, progress=progress, **common)
            models["retrained"] = reference_experiment.reference()
        records["retrained"] = models["retrained"].record()
    scores = api.evaluate(
        models,
        **_measured(split, data.test),
        metrics=job.metrics,
        seconds={name: float(each["seconds"]) for name, each in records.items()},
        seed=job.seed,
        device=job.device,
    )
    if not world.is_main:
        return
    cells = make_cells(job, data, split, scores, records, trained.facts["training"])
    write_text(job.out / "cells.json", json.dumps([cell.model_dump(mode="json") for cell in cells], indent=1) + "\n")
    _print_forgetting(split)
    console.out().print(tables.scores_table(scores.values, labels={"unlearned": job.method}))
    if "requests" in record["details"]:
        console.out().print(tables.requests_table(record["details"]["requests"]))
    for name in ("unlearned", "retrained"):
        for note in records.get(name, {}).get("notes", ()):
            console.say(f"note on {name}: {note}")
    _report([job.out], job.out / "report.html")
    _print_effect(record)


@contextmanager
def _going_on(state: Path) -> Iterator[Path]:
    """Where an unlearning keeps its state; what stops it says how to go on."""
    if state_files(state):
        console.say(f"an interrupted unlearning is kept in {state.parent}.")
    try:
        yield state
    except DivergedError:
        remove_state(state)  # nothing worth going on from
        raise
    except KeyboardInterrupt:
        if state_files(state):
            message = f"finished epochs are kept in {state.parent}; run the same command again to go on."
        else:
            message = "no epoch was finished that could be kept, so the same command begins again."
        raise Interrupted(f"interrupted; {message}") from None


def _named(job: Unlearn) -> Method:
    """The method that was asked for, with its options."""
    options = typed_options(method_class({"method": job.method}), job.options, commands=option_names(Unlearn))
    method = make_method(job.method, **options)
    if not method.same_tensors:
        raise UsageError(
            f"{method.card.name} returns another kind of model, which cannot be saved like {job.checkpoint}; "
            "list it in a study (`expunge run`), or train in shards from Python."
        )
    return method


def _planned(original: nn.Module, splits: Mapping[str, Split], at: Situation, device: str) -> Method:
    """The planner's choice, with its reasons for the person who waits."""
    plan = choose(original, splits, at, pick_device(device))
    claim = "exact" if plan.exact else "approximate"
    console.say(f"method: {plan.method} ({claim}); " + " ".join(plan.why))
    return plan.made()


def _announce(original: nn.Module, method: Method, at: Situation, split: ForgetSplit, job: Unlearn) -> None:
    """Say what it will take; in a terminal, ask before more than an hour."""
    method = method.fitted(at.sizes)
    cost = announce(original, method, at, split.forget, pick_device(job.device))
    console.say(f"{method.card.name}: {cost.sentence}")
    if cost.seconds is None or cost.seconds < LONG or job.yes or not console.interactive():
        return
    if not console.asked("Begin?"):
        raise UsageError(f"{method.card.name} was not begun; pass --yes to begin it without this question.")


def evaluate(job: Evaluate) -> None:
    """Measure the given checkpoints side by side."""
    model_paths = {name: getattr(job, name) for name in ("original", "unlearned", "retrained")}
    paths: dict[str, Path] = {name: path for name, path in model_paths.items() if path is not None}
    if not paths:
        raise UsageError("nothing to evaluate: give at least one of --original, --unlearned, --retrained.")
    job, data = inputs.data_for(job, next(iter(paths.values())))
    data = inputs.without_held_out(data, paths.get("unlearned"))
    split = inputs.split_data(job, data.train)
    scores = api.evaluate(
        {name: inputs.build(job, data.train, weights=path) for name, path in paths.items()},
        **_measured(split, data.test),
        metrics=job.metrics,
        seed=job.seed,
        device=job.device,
    )
    if not distributed.current().is_main:
        return
    if job.csv is not None:
        write_text(job.csv, csv_for_people(scores.frame(), raw=job.raw))
    if job.json:
        console.print_json(json.loads(scores.frame().to_json(orient="records")))
        return
    _print_forgetting(split)
    console.out().print(tables.scores_table(scores.values))
    for note in scores.notes:
        console.say(note)
    if job.csv is not None:
        console.say(f"written: {job.csv}")


def _measured(split: ForgetSplit, test: Split | None) -> dict[str, Any]:
    """The data that `evaluate` is given."""
    return {"forget": split.forget, "retain": split.retain, "test": test, "sample": split.sample}


def audit(job: Audit | Pooled) -> None:
    """Retrained references by name or made now, then the verdict; printed and written."""
    failing = failing_words(job.fail_on)
    if isinstance(job, Pooled):
        verdict, title, facts, more = _pooled(job)
    else:
        verdict, title, facts, more = _audited(job)
    page = _write_verdict(job, verdict, title, facts, more)
    console.out().print(tables.attacks_table(verdict))
    console.out().print(str(verdict), soft_wrap=True)
    for note in verdict.features.notes if verdict.features is not None else ():
        console.say(f"feature-level audit: {note}")
    console.out().print(f"report: {page}", soft_wrap=True)
    if verdict.label in failing:
        raise VerdictRefused(f"the verdict is `{verdict.label}`, which --fail-on names; {page} says why.")


Facts = list[tuple[str, str]]


def _write_verdict(job: Audit | Pooled, verdict: Verdict, title: str, facts: Facts, more: Mapping[str, Any]) -> Path:
    """verdict.json, the tables, and the page, whose path is returned."""
    from expunge.report.audit_page import build_audit_page

    record = {**verdict.record(), **more, "settings": to_dict(job), "versions": versions()}
    write_text(job.out / "attacks.csv", csv_for_people(verdict.frame()))
    if verdict.comparisons:
        write_text(job.out / "tests.csv", csv_for_people(verdict.tests()))
    if verdict.features is not None:
        write_text(job.out / "residue.csv", csv_for_people(verdict.features.frame()))
    write_text(job.out / "verdict.json", json.dumps(record, indent=1, default=str) + "\n")
    return build_audit_page(verdict, job.out / "audit.html", title=title, facts=facts)


def _pooled(job: Pooled) -> tuple[Verdict, str, Facts, dict[str, Any]]:
    """The verdict on all requests that a workspace fulfilled; its title, facts, and more for the record."""
    from expunge.requests.extras import extra

    with extra("requests"):
        from expunge.requests.desk import Desk

    with Desk.open(job.pool) as desk:
        found = desk.pool(references=job.retrain, seed=job.seed, features=job.residue, extended=job.extended)
    facts = [
        ("Requests", f"{len(found.fulfilments)} fulfilments, {found.samples:,} samples"),
        ("Original", found.original[:13]),
        ("Exact test over requests", "not possible" if found.p is None else f"p = {found.p:.3g}"),
    ]
    pool = {"fulfilments": list(found.fulfilments), "samples": found.samples, "p": found.p, "possible": found.possible}
    return found.verdict, f"Pooled audit of {job.pool}", facts, {"pool": pool}


def _audited(job: Audit) -> tuple[Verdict, str, Facts, dict[str, Any]]:
    """The verdict on one unlearned model; its title, facts, and more for the record."""
    method = _method_of(job)
    job, data = inputs.data_for(job, job.original)
    data = inputs.without_held_out(data, job.unlearned)
    test = data.test
    if test is None:
        raise UsageError("an audit needs samples that no model has seen; give --test.")
    split = inputs.split_data(job, data.train)
    original = inputs.for_references(inputs.original(job, job.original, data=data, train=split.train))
    count, places = _references(job)
    if (count or job.shadows) and original.recipe is None:
        raise UsageError(
            "references and shadow models cannot be trained without the recipe of the original; give --recipe "
            "file.yaml, or an original that `expunge train` made."
        )
    goal = job.goal or ("repair" if job.corrected is not None else "untrain")
    corrected = None if job.corrected is None else right_labels_in(job.corrected, split)
    ready = prepared(goal, {"forget": split.forget, "retain": split.retain, "test": test}, corrected)
    references: list[Any] = [inputs.build(job, data.train, weights=path) for path in _weights_in(places)]
    references += train_references(
        original, count, forget=split.forget, retain=reference_data(goal, ready, corrected), seed=job.seed,
        device=job.device,
    )  # fmt: skip
    unlearned = inputs.build(job, data.train, weights=job.unlearned)
    with console.progress() as progress:
        verdict = evidence.audit(
            original, unlearned, forget=split, test=data.test, references=references,
            margins=Margins(accuracy=job.margin_accuracy, auc=job.margin_auc), seed=job.seed, device=job.device,
            shadows=job.shadows, method=method, design=job.design, requests=job.requests, jobs=job.jobs,
            cache=cache_root(), features=job.residue, goal=goal, corrected=corrected, extended=job.extended,
            random=job.forget.partition(":")[0] == "random", progress=counting("shadows", progress),
        )  # fmt: skip
    facts = facts_beside(job.unlearned)
    if facts.get("weights") == weights_hash(unlearned):  # what was written about this very model
        verdict = evidence.by_construction(verdict, facts, split.forget)
    _print_forgetting(split)
    more = {"forgotten": split.describe(), "retrained": len(references)}
    return verdict, f"Audit of {job.unlearned}", _audit_facts(job, data, split, len(references)), more


def right_labels_in(path: Path, split: ForgetSplit) -> Tensor:
    """The right labels of the samples to forget, long (n,), -1 where the list does not say; `UsageError` if nowhere.

    Args:
        path: A list as `expunge repair` takes it.
        split: What is to be forgotten.
    """
    from expunge.repair.suspects import read_suspects

    suspects = read_suspects(path, split.train)
    known = torch.full((len(split.train.store),), -1)
    known[suspects.positions] = suspects.suggested
    labels = known[split.forget.index]
    if not bool((labels >= 0).any()):
        raise UsageError(f"{path} has no right label of any of the {len(split.forget)} samples to forget.")
    return labels


class VerdictRefused(ExpungeError):
    """A verdict that the caller wants to fail on: everything is written, and the exit code says it."""

    exit_code = 3


def failing_words(names: str | None) -> list[str]:
    """Verdicts named on the command line, with hyphens or spaces. Raises `UsageError` for an unknown one."""
    labels = {label.replace(" ", "-"): label for label in LABELS}
    requested = [name.strip().replace(" ", "-") for name in (names or "").split(",") if name.strip()]
    for name in requested:
        if name not in labels:
            raise unknown("verdict", name, labels)
    return [labels[name] for name in requested]


def _audit_facts(job: Audit, data: Data, split: ForgetSplit, references: int) -> list[tuple[str, str]]:
    facts = [
        ("To forget", f"{len(split.forget):,} of {len(split.train):,} training samples ({job.forget})"),
        ("Data", f"{job.data}, {len(data.test) if data.test else 0:,} unseen samples"),
        ("Model", job.model),
        ("Trained again", f"{references} models" if references else "none"),
    ]
    return [*facts, ("Shadow models", f"{job.shadows}, {job.design}")] if job.shadows else facts


def _method_of(job: Audit) -> Method | None:
    """What the shadows forget by: --method, or what the result.json beside the unlearned model tells."""
    if job.method is None and job.options:
        name = next(iter(job.options))
        raise UsageError(f"audit has no option `{name}`; {nearest(name, option_names(Audit))}.")
    if not job.shadows:
        if job.method is not None:
            raise UsageError("`--method` says what shadow models forget by; give --shadows 64 with it.")
        return None
    if job.method is not None:
        cls = METHODS.load(job.method.partition("/")[0])
        return make_method(job.method, **typed_options(cls, job.options, commands=option_names(Audit)))
    facts = facts_beside(job.unlearned)
    if "method" not in facts:
        raise UsageError(
            f"what made {job.unlearned} is not known; give --method, which the shadow models then use too."
        )
    return make_method(str(facts["method"]), **facts["options"])


def _references(job: Audit) -> tuple[int, list[Path]]:
    """How many references are trained now, and where others are; `--retrain` and `--retrained` are older names."""
    older = [] if job.retrained is None else [job.retrained]
    if job.references is None:
        return job.retrain, older
    if job.retrain or older:
        name = "retrain" if job.retrain else "retrained"
        raise UsageError(f"`--{name}` is an older name of `--references`; give one of them.")
    if re.fullmatch(r"[+-]?\d+", job.references.strip()):
        count = int(job.references)
        if count < 0 or count == 1:
            raise UsageError(f"--references must be 0 or at least 2 (one has no spread), got {count}.")
        return count, []
    return 0, [Path(name.strip()).expanduser() for name in job.references.split(",") if name.strip()]


def _weights_in(places: list[Path]) -> list[Path]:
    """Checkpoints: files, and those of folders, also one level down, as `expunge train --out folder/1` leaves them.

    Initial weights and other tensors that `expunge train` keeps beside a model are no models.
    """
    found: list[Path] = []
    for place in places:
        inside = sorted([*place.glob("*.safetensors"), *place.glob("*/*.safetensors")]) if place.is_dir() else [place]
        inside = [path for path in inside if path.name not in (INITIAL, IMPORTANCE)]
        if not inside:
            raise UsageError(f"{place} holds no .safetensors; name a folder of models trained without the forget set.")
        found += inside
    return found


def _check_first(job: Unlearn, method: Method, trained: TrainedModel, split: ForgetSplit) -> None:
    """Refuse now what could not be done after the work: the reference, the metrics; and say how to hold data out."""
    if job.retrain and trained.recipe is None:
        raise UsageError(
            "the reference cannot be retrained without the recipe of the original; give --recipe file.yaml, "
            "or a checkpoint that `expunge train` made."
        )
    needs = method.needs
    if needs.validation != "none" and "validation" not in needs.optional and trained.held_out is None:
        raise UsageError(
            f"{job.method} with these options needs validation data that the model was not trained on; give "
            "--validation, or a checkpoint of `expunge train --holdout 0.1`."
        )
    if trained.test is not None:
        check_disjoint({"forget": split.forget, "test": trained.test})
    if job.metrics is not None:
        names = ("original", "unlearned", *(["retrained"] if job.retrain else []))
        splits = {"forget": split.forget, "retain": split.retain, "test": trained.test}
        check_metrics(job.metrics, dict.fromkeys(names, trained.model), splits)


def _same_data(folder: Path, before: str, now: str) -> None:
    if before and before != now:
        raise UsageError(f"the data changed since {folder} was written; pass --force or choose another folder.")


def _print_training(record: dict[str, Any], folder: Path) -> None:
    last = record["history"][-1] if record["history"] else {}
    grid = console.table(
        "trained", "epochs", "last loss", "seconds", "folder", right=("epochs", "last loss", "seconds")
    )
    loss = f"{last['loss']:.4f}" if "loss" in last else "-"
    samples = f"{record['sizes']['train']:,} samples"
    grid.add_row(samples, str(len(record["history"])), loss, f"{record['seconds']:.1f}", str(folder))
    console.out().print(grid)


def _print_forgetting(split: ForgetSplit) -> None:
    facts = split.describe()
    console.out().print(f"forget {facts['forget']:,} of {facts['forget'] + facts['retain']:,} samples")


def _print_effect(record: dict[str, Any]) -> None:
    """The last line: what it did, in one word first."""
    if record.get("effect") is not None:
        effect = Effect.of_record(record["effect"])
        console.out().print(f"effect: {effect}", soft_wrap=True)


def _report(runs: list[Path], out: Path) -> None:
    from expunge.cli.reports import write_report

    write_report(runs, out)
    console.say(f"report: {out}")
