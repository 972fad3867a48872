"""`expunge.memorise` on real digits: wrong labels are memorised, and every score says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from torch import nn

import expunge
from expunge.core.errors import DataError, UsageError
from expunge.data.scores import SampleScores
from expunge.data.sources import load_pair
from expunge.models.build import build_model
from expunge.scenarios.base import ForgetSplit

RECIPE = {"epochs": 20, "batch_size": 32, "optimizer": "adam", "lr": 0.01, "weight_decay": 0.0, "schedule": "constant"}


@pytest.fixture(scope="module")
def noisy() -> ForgetSplit:
    """300 digits, 30 of them with a wrong label: `forget`."""
    train, _ = load_pair("digits")
    return expunge.scenario("noisy", train.take(train.index[:300]), amount=30, seed=0)


@pytest.fixture(scope="module")
def model(noisy: ForgetSplit) -> nn.Module:
    return build_model("mlp", num_classes=10, input_shape=noisy.train.input_shape, seed=0)


@pytest.fixture(scope="module")
def scores(noisy: ForgetSplit, model: nn.Module) -> dict[str, SampleScores]:
    make: Any = expunge.memorise
    return {
        by: make(model, noisy.train, by=by, models=8, recipe=RECIPE, device="cpu")
        for by in ("subsampling", "confidence", "events")
    }


@pytest.mark.parametrize("by", ["subsampling", "confidence", "events"])
def test_wrong_labels_have_high_scores(scores: dict[str, SampleScores], noisy: ForgetSplit, by: str) -> None:
    score = scores[by].score
    wrong = np.isin(scores[by].positions, noisy.forget.index.numpy())
    known = np.isfinite(score)
    assert known[wrong].sum() > 20
    assert roc_auc_score(wrong[known], score[known]) > 0.85
    assert score[known & wrong].mean() > score[known & ~wrong].mean() + 0.3


def test_memorised_samples_are_those_known_only_when_seen(scores: dict[str, SampleScores], noisy: ForgetSplit) -> None:
    table = scores["subsampling"].frame().set_index("position").loc[noisy.forget.index.tolist()].dropna()
    assert table["inside"].mean() > 0.7
    assert table["outside"].mean() < 0.2
    assert (table["models_in"] + table["models_out"] == 8).all()


def test_the_file_makes_a_forget_set_of_wrong_labels(
    scores: dict[str, SampleScores], noisy: ForgetSplit, tmp_path: Path
) -> None:
    path = scores["confidence"].save(tmp_path / "scores.parquet")
    shares = {}
    for level in ("low", "medium", "high"):
        found = expunge.scenario("memorised", noisy.train, level=level, amount=30, scores=path)
        shares[level] = np.isin(found.forget.index, noisy.forget.index).mean()
    assert shares["low"] == 0
    assert shares["high"] > 0.6


def test_the_facts_tell_how_to_make_them_again(scores: dict[str, SampleScores]) -> None:
    facts = scores["subsampling"].facts
    assert (facts["by"], facts["models"], facts["share"], facts["seed"]) == ("subsampling", 8, 0.7, 0)
    assert facts["recipe"]["epochs"] == 20
    assert facts["data"]


def test_an_assumed_recipe_is_stated(noisy: ForgetSplit, model: nn.Module) -> None:
    few = noisy.train.take(noisy.train.index[:40])
    made = expunge.memorise(model, few, by="confidence", device="cpu")
    assert made.notes[-1].startswith("no recipe was given and the model knows none, so the default one was used (20")
    known = expunge.memorise(model, few, by="confidence", recipe={"epochs": 1}, device="cpu")
    assert not any("recipe" in note for note in known.notes)


def test_the_worst_case_avoids_wrong_labels(noisy: ForgetSplit, model: nn.Module, tmp_path: Path) -> None:
    """What nothing else supports is easy to erase."""
    found = expunge.memorise(
        model, noisy.train, by="worst-case", amount=30, search={"rounds": 3}, recipe=RECIPE, device="cpu",
        cache=tmp_path,
    )  # fmt: skip
    worst = found.positions[np.argsort(-found.score)[:30]]
    assert not np.isin(worst, noisy.forget.index.numpy()).any()
    assert found.facts["count"] == 30


def test_bad_requests_are_refused(noisy: ForgetSplit, model: nn.Module) -> None:
    make: Any = expunge.memorise
    for more, phrase in (
        ({"by": "event"}, "did you mean `events`"),
        ({"models": 1}, "at least 2"),
        ({"share": 1.5}, "share"),
        ({"by": "worst-case", "amount": 300}, "some, not all"),
        ({"by": "worst-case", "search": {"round": 3}}, "no option `round`"),
        ({"recipe": {"epoch": 3}}, "no option `epoch`"),
    ):
        with pytest.raises(UsageError, match=phrase):
            make(model, noisy.train, device="cpu", **{"recipe": {"epochs": 0}, **more})
    with pytest.raises((DataError, UsageError), match="label"):
        make(model, noisy.train.without_labels(), device="cpu")
