"""The calibration of the audit: worlds, groups without overlap, intervals by group."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import calibration
from benchmarks.calibration import Measured, World, make_world, measure, summary, trials
from expunge.evidence.rates import Interval, Separation

Numbers = dict[str, float]
GOOD = {"forget accuracy": 0.70, "loss attack AUC": 0.50, "retain accuracy": 0.99, "test accuracy": 0.70}
BELOW = {"probe confidence": 0.3, "misalignment": 0.1, "relearn accuracy": 0.2, "layer CKA gap": -0.1}


@pytest.fixture(scope="module")
def world() -> World:
    return make_world("a tenth, overfitted to 30 % wrong labels", "digits", 400, 200, 0)


def measured(share: float, seed: int) -> Measured:
    rng = np.random.default_rng(seed)
    knows = 0.3 * share
    numbers = {name: value + 0.004 * rng.standard_normal() for name, value in GOOD.items()}
    numbers["forget accuracy"] += knows
    numbers["loss attack AUC"] += knows
    auc = numbers["loss attack AUC"]
    below = {name: value + 0.01 * rng.standard_normal() + knows for name, value in BELOW.items()}
    return Measured(share, seed, numbers, Separation(Interval(auc, auc - 0.03, auc + 0.03), {}), below)


def test_the_world_is_as_wrong_as_it_says(world: World) -> None:
    assert len(world.train) == 400
    assert len(world.forget) == 40
    assert len(world.test) == 200
    for split in (world.train, world.test):
        assert float((split.y != split.store.labels[split.index]).double().mean()) == pytest.approx(0.3, abs=0.005)
    assert not bool(torch.isin(world.forget.index, world.retain.index).any())


def test_a_model_is_measured_as_an_audit_would(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "RECIPE", replace(calibration.RECIPE, epochs=150))  # digits are small
    knows, never = measure(world, (1.0, 3)), measure(world, (0.0, 3))
    assert set(knows.numbers) == set(GOOD)
    assert set(knows.below) == set(BELOW)
    assert knows.numbers["forget accuracy"] > never.numbers["forget accuracy"] + 0.2
    half = measure(world, (0.5, 3))
    assert never.numbers["forget accuracy"] < half.numbers["forget accuracy"] < knows.numbers["forget accuracy"]


def test_groups_share_no_model_and_judge_nobody_by_itself(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[float, tuple[float, ...]]] = []
    real = calibration.against_retrained

    def spied(original: Numbers, one: Numbers, again: list[Numbers], *rest: Any, **more: Any) -> Any:
        seen.append((one["test accuracy"], tuple(sorted(other["test accuracy"] for other in again))))
        return real(original, one, again, *rest, **more)

    monkeypatch.setattr(calibration, "against_retrained", spied)
    models = [measured(0.0, seed) for seed in range(18)] + [measured(1.0, seed) for seed in range(100, 104)]
    rows = pd.DataFrame(trials(world, models))
    assert all(candidate not in references for candidate, references in seen)
    again = rows[(rows["share"] == 0) & (rows["basis"] == "5 retrained")]
    assert sorted(again["seed"]) == list(range(18))
    assert again.groupby("group")["seed"].nunique().tolist() == [6, 6, 6]
    knows = rows[(rows["share"] == 1) & rows["basis"].str.endswith("retrained")]
    assert set(knows["word"]) == {"not forgotten"}
    assert knows["hides"].astype(bool).mean() > 0.5
    assert again["word"].isin(["forgotten", "not enough evidence"]).mean() > 0.8


def test_intervals_resample_groups() -> None:
    rows = pd.DataFrame(
        {"world": "w", "basis": "b", "share": 0.0, "group": np.repeat(range(20), 6), "seed": 0, "hides": False,
         "word": np.repeat(["not forgotten"] * 2 + ["forgotten"] * 18, 6)}
    )  # fmt: skip
    (found,) = summary(rows).to_dict("records")
    assert found["alarms"] == pytest.approx(0.1)
    assert found["trials"] == 120
    assert found["groups"] == 20
    # Six equal trials are one: as wide as for 2 of 20, not as for 12 of 120 (0.05 .. 0.17).
    assert found["low"] == 0.0
    assert found["high"] >= 0.2
    (none,) = summary(rows.assign(word="forgotten")).to_dict("records")
    assert (none["low"], none["high"]) == pytest.approx((0.0, 0.168), abs=1e-3)  # 0 of 20 groups, not 0 of 120
