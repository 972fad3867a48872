"""Is the audit right as often as it says? It is tried on models whose truth is known.

World      one data set and one forget set; small networks, trained many times with different seeds
Truth      retrained models never saw the forget set: any word but "forgotten" and "not enough evidence" is a false
           alarm. Originals saw all of it: "not forgotten" is right (power). Between them: models that were trained with
           a share of the forget set, as a method that forgets only a part would leave them
Groups     n references and one candidate, every retrained model in one group only; within a group each model is the
           candidate once. Intervals resample groups, because the trials of one group share their models
U-LiRA     the audited method is "retrain" for retrained candidates, and "original" for originals

`python -m benchmarks.calibration OUT` writes trials.csv, ulira.csv and summary.csv.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
from torch import nn

from expunge.api.result import write_text
from expunge.core.options import build
from expunge.core.pool import in_processes
from expunge.core.seeds import derive, numpy_generator
from expunge.data.cache import cache_root
from expunge.data.sources import load_pair
from expunge.data.split import Split
from expunge.evidence.audit import population_attacks, resolution, sizes, statistics
from expunge.evidence.depth import Depth
from expunge.evidence.persample import attack_unlearned
from expunge.evidence.rates import Separation, clopper_pearson
from expunge.evidence.residue import examine, judge
from expunge.evidence.shadows import make_plan, score, shadow_scores, trained_anew
from expunge.evidence.verdict import Margins, against_held_out, against_retrained
from expunge.methods.base import make_method
from expunge.metrics.base import Evaluation
from expunge.models.build import build_model
from expunge.scenarios.base import parse_scenario
from expunge.training.recipe import Recipe

WORLDS = {  # name -> (who is forgotten, share of wrong labels in all training data)
    "a tenth": ("random:0.1", 0.0),
    "a tenth, overfitted to 30 % wrong labels": ("random:0.1", 0.3),
    "one class": ("class:3", 0.0),
}
SHARES = (0.25, 0.5, 0.75)  # of the forget set that a planted model still knows
REFERENCES = (3, 5, 8)
RECIPE = build(
    Recipe, {"epochs": 30, "batch_size": 64, "lr": 0.001, "optimizer": "adam", "weight_decay": 0.0}, "recipe"
)
MARGINS, DEPTH = build(Margins, {}, "margins"), build(Depth, {}, "depth")
ALARMS = ("not forgotten", "over-forgotten", "damaged")


@dataclass(frozen=True, eq=False)
class World:
    """Splits with the labels that models are trained on, and the architecture."""

    name: str
    train: Split
    forget: Split
    retain: Split
    test: Split
    model: nn.Module


@dataclass(frozen=True, eq=False)
class Measured:
    """One trained model. numbers, attack: of `audit`; below: of `residue`. share: of the forget set that it saw."""

    share: float
    seed: int
    numbers: dict[str, float]
    attack: Separation
    below: dict[str, float]


def make_world(name: str, data: str, train_size: int, test_size: int, seed: int) -> World:
    scenario, wrong = WORLDS[name]
    whole, unseen = load_pair(data)
    if unseen is None:
        raise typer.BadParameter(f"`{data}` has no test samples.")
    rng = numpy_generator(seed, "calibration", name)
    chosen = whole.take(whole.index[torch.from_numpy(np.sort(rng.permutation(len(whole))[:train_size]))])
    if wrong:
        labels = chosen.store.labels.clone()
        spoilt = chosen.index[torch.from_numpy(rng.permutation(len(chosen))[: int(wrong * len(chosen))])]
        labels[spoilt] = (labels[spoilt] + 1 + torch.from_numpy(rng.integers(0, 9, len(spoilt)))) % chosen.num_classes
        chosen = chosen.with_labels(labels)
    parts = parse_scenario(scenario).split(chosen, seed)
    test = unseen.take(unseen.index[torch.from_numpy(np.sort(rng.permutation(len(unseen))[:test_size]))], "test")
    if wrong:  # what is held against the forget set must be as wrong as it is
        labels = test.store.labels.clone()
        spoilt = test.index[torch.from_numpy(rng.permutation(len(test))[: int(wrong * len(test))])]
        labels[spoilt] = (labels[spoilt] + 1 + torch.from_numpy(rng.integers(0, 9, len(spoilt)))) % test.num_classes
        test = test.with_labels(labels)
    model = build_model("mlp", num_classes=chosen.num_classes, input_shape=chosen.input_shape, seed=0, options={})
    return World(name, parts.train, parts.forget, parts.retain, test, model)


def measure(world: World, item: tuple[float, int]) -> Measured:
    """Train on the retained samples and a share of the forget set, and take every number of an audit."""
    share, seed = item
    rng = numpy_generator(seed, "share", share)
    kept = rng.permutation(len(world.forget))[: round(share * len(world.forget))]
    seen = torch.cat([world.retain.index, world.forget.index[torch.from_numpy(np.sort(kept))]]).sort().values
    model = _trained(world.model, world.train.take(seen), seed)
    evaluation = Evaluation(
        {"original": model}, {"forget": world.forget, "retain": world.retain, "test": world.test}, seed=seed
    )
    attacks = population_attacks(evaluation, "original", 200)
    below = examine(evaluation).numbers()["original"]
    return Measured(share, seed, statistics(evaluation, "original", attacks), attacks["loss"], below)


def trials(world: World, models: Sequence[Measured]) -> Iterator[dict[str, Any]]:
    """One row per verdict, with its group."""
    again = [one for one in models if one.share == 0]
    others = [one for one in models if one.share > 0]
    original = next(one for one in others if one.share == 1)
    splits = {"forget": world.forget, "retain": world.retain, "test": world.test}
    fine = resolution(sizes(Evaluation({}, splits)))

    def row(count: int, group: int, one: Measured, references: Sequence[Measured]) -> dict[str, Any]:
        known = [reference.numbers for reference in references]
        word, _, _ = against_retrained(original.numbers, one.numbers, known, MARGINS, resolution=fine)
        below = {"original": original.below, "unlearned": one.below}
        names = [f"retrained {i}" for i in range(len(references))]
        flags = judge({**below, **dict(zip(names, (r.below for r in references), strict=True))}, names, DEPTH)[1]
        return {
            "world": world.name, "basis": f"{count} retrained", "group": group, "share": one.share, "seed": one.seed,
            "word": word, "hides": bool(flags),
        }  # fmt: skip

    for count in REFERENCES:
        for group in range(len(again) // (count + 1)):
            members = again[group * (count + 1) : (group + 1) * (count + 1)]
            for one in members:
                yield row(count, group, one, [other for other in members if other is not one])
            for at in range(group, len(others), max(1, len(again) // (count + 1))):
                yield row(count, group, others[at], members[:count])
    for group, one in enumerate(models):
        word, _, _ = against_held_out(original.numbers, one.numbers, one.attack, MARGINS)
        yield {
            "world": world.name, "basis": "held-out", "group": group, "share": one.share, "seed": one.seed,
            "word": word, "hides": None,
        }  # fmt: skip


def ulira_trials(world: World, shadows: int, candidates: int, seed: int, jobs: int) -> Iterator[dict[str, Any]]:
    """U-LiRA on models whose truth is known; its shadows serve all of them."""
    plan = make_plan(world.forget, world.retain, world.test, shadows, seed=seed)
    for name, share in (("retrain", 0.0), ("original", 1.0)):
        method = make_method(name)
        scores = shadow_scores(
            world.model, plan, recipe=RECIPE, method=method, seed=seed, device="cpu", jobs=jobs, cache=cache_root()
        )
        data = world.retain if share == 0 else world.train
        for at in range(candidates):
            made = _trained(world.model, data, derive(seed, "candidate", name, at) % 2**31)
            phi = score(made, plan, "cpu")[: len(plan.targets)]
            found = attack_unlearned(phi, scores, seed=at)
            yield {
                "world": world.name, "share": share, "candidate": at, "shadows": shadows, "auc": found.auc.value,
                "low": found.auc.low, "high": found.auc.high, "epsilon": found.epsilon,
                "alarm": found.auc.low > 0.5 + MARGINS.auc,
            }  # fmt: skip


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Per world, basis and share: trials, groups, the share of each kind of word, and an interval for alarms."""
    found = []
    for (world, basis, share), part in rows.groupby(["world", "basis", "share"], sort=False):
        alarm = part["word"].isin(ALARMS)
        low, high = _interval(alarm.to_numpy(), part["group"].to_numpy())
        hides = part["hides"].dropna()
        found.append(
            {
                "world": world, "basis": basis, "share seen": share, "trials": len(part),
                "groups": part["group"].nunique(), "alarms": alarm.mean(), "low": low, "high": high,
                "not forgotten": (part["word"] == "not forgotten").mean(),
                "forgotten": part["word"].str.startswith("forgotten").mean(),
                "not enough evidence": (part["word"] == "not enough evidence").mean(),
                "hides": hides.astype(float).mean() if len(hides) else float("nan"),
            }
        )  # fmt: skip
    return pd.DataFrame(found)


def _interval(alarms: np.ndarray, groups: np.ndarray, resamples: int = 2000) -> tuple[float, float]:
    """95 %, by resampling whole groups; where all trials agree, exact with groups as the units, which is cautious."""
    names, codes = np.unique(groups, return_inverse=True)
    hits = np.bincount(codes, alarms.astype(float), len(names))
    sizes = np.bincount(codes, minlength=len(names)).astype(float)
    if alarms.all() or not alarms.any():
        return clopper_pearson(len(names) if alarms.all() else 0, len(names))
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(names), (resamples, len(names)))
    rates = hits[drawn].sum(1) / sizes[drawn].sum(1)
    return float(np.quantile(rates, 0.025)), float(np.quantile(rates, 0.975))


def _trained(model: nn.Module, data: Split, seed: int) -> nn.Module:
    return trained_anew(model, [data], recipe=RECIPE, seeds=[seed], device="cpu")[1][0]


def main(
    out: Path,
    data: Annotated[str, typer.Option(help="A source with training and test samples.")] = "mnist",
    train_size: int = 1500,
    test_size: int = 3000,
    retrained: Annotated[int, typer.Option(help="Retrained models per world.")] = 72,
    others: Annotated[int, typer.Option(help="Originals, and models of each planted share, per world.")] = 12,
    shadows: int = 32,
    candidates: int = 20,
    seed: int = 0,
    jobs: int = 1,
) -> None:
    """Calibrate the audit, world by world; worlds that OUT holds are not done again."""
    settings = {
        "data": Path(data).name, "train_size": train_size, "test_size": test_size, "retrained": retrained,
        "others": others, "shadows": shadows, "candidates": candidates, "seed": seed,
    }  # fmt: skip
    kept = out / "settings.json"
    if kept.is_file() and json.loads(kept.read_text(encoding="utf-8")) != settings:
        raise typer.BadParameter(f"{out} holds results of other settings; choose another folder.")
    write_text(kept, json.dumps(settings, indent=1) + "\n")
    rows, attacks = _read(out / "trials.csv"), _read(out / "ulira.csv")
    for name in WORLDS:
        if any(row["world"] == name for row in attacks):
            continue
        world = make_world(name, data, train_size, test_size, seed)
        seeds = range(1000 * (seed + 1), 1000 * (seed + 1) + max(retrained, others))
        items = [(0.0, s) for s in seeds[:retrained]] + [(q, s) for q in (*SHARES, 1.0) for s in seeds[:others]]
        models = list(in_processes(measure, items, shared=world, jobs=jobs, preload=["benchmarks.calibration"]))
        models.sort(key=lambda one: (one.share, one.seed))
        rows += trials(world, models)
        attacks += ulira_trials(world, shadows, candidates, seed, jobs)
        write_text(out / "trials.csv", pd.DataFrame(rows).to_csv(index=False))
        write_text(out / "ulira.csv", pd.DataFrame(attacks).to_csv(index=False))
    table = summary(pd.DataFrame(rows))
    write_text(out / "summary.csv", table.to_csv(index=False, float_format="%.4f"))
    sys.stdout.write(f"{table.to_string(index=False)}\n")


def _read(file: Path) -> list[dict[str, Any]]:
    return pd.read_csv(file).to_dict("records") if file.is_file() else []


if __name__ == "__main__":
    # By its name, so that workers find what was pickled: there is no such `__main__` in them.
    from benchmarks import calibration

    typer.run(calibration.main)
