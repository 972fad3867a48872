"""The published attack's counts and its oddity; the fair one where the answer is known."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import expunge
from expunge.core.errors import UsageError
from expunge.data.split import ResidentStore, Split
from expunge.metrics.asr import (
    _BOOSTERS,
    BalancedASR,
    PublishedASR,
    SampleCounts,
    _like_xgboost,
    outputs,
    published_rows,
)
from expunge.metrics.base import Evaluation, Metric

# Specification, section 7: (D_f, D_r, test) and members : non-members that are judged.
COUNTS = {
    "mnist": [(11760, 10000, 4976), (5923, 10000, 4976), (18355, 10000, 4976)],
    "fashion": [(12000, 10000, 4976), (6000, 10000, 4976), (18000, 10000, 4976)],
    "cifar10": [(10000, 10000, 4976), (5000, 10000, 4976), (15000, 10000, 4976)],
    "svhn": [(11161, 26032, 11168), (4948, 26032, 4960), (27207, 26032, 21008)],
}


@pytest.mark.parametrize(("forget", "test", "judged"), [row for rows in COUNTS.values() for row in rows])
def test_published_counts(forget: int, test: int, judged: int) -> None:
    assert published_rows(forget, 60000 - forget, test) == SampleCounts(min(5024, forget), 5024, judged)


def test_small_test_sets_are_halved() -> None:
    assert published_rows(40, 200, 1000) == SampleCounts(40, 500, 64)
    assert published_rows(40, 20, 5024) == SampleCounts(20, 2512, 64)


class Table(nn.Module):
    """The inputs are the logits."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def split(rng: np.random.Generator, count: int, sure: float, classes: int = 3) -> Split:
    """Logits that favour the label by `sure` plus noise."""
    labels = torch.from_numpy(rng.integers(0, classes, count))
    logits = torch.from_numpy(rng.normal(0, 1, (count, classes))).float()
    logits[torch.arange(count), labels] += sure
    return Split.whole(ResidentStore(logits, labels, classes=[str(c) for c in range(classes)]))


def scores(
    metric: Metric, sure: tuple[float, float, float], sizes: tuple[int, int, int] = (400, 900, 800), seed: int = 0
) -> dict[str, Any]:
    """Values where the model favours the labels of forget, retain and test samples so much."""
    rng = np.random.default_rng(seed)
    names = ("forget", "retain", "test")
    splits = {name: split(rng, n, s) for name, n, s in zip(names, sizes, sure, strict=True)}
    evaluation = Evaluation({"m": Table()}, splits, seed=seed)
    assert metric.applies(evaluation)
    return {v.metric: v for v in metric.compute(evaluation, "m")}


def test_features_are_sorted_and_know_no_class() -> None:
    found = outputs(torch.tensor([[1.0, 3.0, 2.0], [3.0, 2.0, 1.0]]))
    assert found[0] == pytest.approx(found[1])
    assert (np.diff(found[0]) > 0).all()
    assert found.sum(1) == pytest.approx([1, 1])


@pytest.mark.parametrize("trees", ["xgboost", "sklearn"])
def test_published_attack_on_what_it_can_and_cannot_know(trees: str) -> None:
    if trees == "xgboost":
        pytest.importorskip("xgboost")
    metric = PublishedASR(rows=300, trees=trees)
    remembered = scores(metric, (9, 9, 0))
    assert remembered["asr"].value > 0.95
    assert remembered["asr_neutral"].value == pytest.approx(400 / (400 + 416))
    forgotten = scores(metric, (0, 9, 0))
    assert forgotten["asr"].value < 0.55
    assert forgotten["asr"].low < forgotten["asr"].value < forgotten["asr"].high


def test_published_attack_learns_from_the_first_and_judges_the_next_test_rows() -> None:
    """The first 500 test rows look like no member, the rest like one: an attack that mixed them would do better."""
    rng = np.random.default_rng(0)
    unlike, like = split(rng, 500, 0), split(rng, 500, 9)
    test = Split.whole(
        ResidentStore(
            torch.cat([unlike.store.samples, like.store.samples]), torch.cat([unlike.y, like.y]), classes=list("012")
        )
    )
    splits = {"forget": split(rng, 480, 9), "retain": split(rng, 900, 9), "test": test}
    found = PublishedASR(rows=500, trees="sklearn").compute(Evaluation({"m": Table()}, splits), "m")
    values = {v.metric: v.value for v in found}
    assert values["asr_neutral"] == 0.5
    assert values["asr"] == pytest.approx(0.5, abs=0.02)


def test_published_attack_is_seeded() -> None:
    metric = PublishedASR(rows=300, trees="sklearn")
    first, again = (scores(metric, (2, 2, 1))["asr"].value for _ in range(2))
    assert first == again


def test_published_attack_learns_from_the_authors_sample() -> None:
    """Half of D_r looks like test data: an attack that learns from the other half alone knows its members."""
    rng = np.random.default_rng(0)
    known, strange = split(rng, 300, 9), split(rng, 300, 0)
    samples = torch.cat([strange.store.samples, known.store.samples])
    retain = Split.whole(ResidentStore(samples, torch.cat([strange.y, known.y]), classes=list("012")))
    splits = {"forget": split(rng, 300, 9), "retain": retain, "test": split(rng, 700, 0)}
    learnt = []
    metric = PublishedASR(rows=300, trees="sklearn")

    def measured(sample: torch.Tensor | None, seed: int = 0) -> float:
        evaluation = Evaluation({"m": Table()}, splits, seed=seed, sample=sample)
        return next(v.value for v in metric.compute(evaluation, "m") if v.metric == "asr")

    order = 300 + torch.randperm(300, generator=torch.Generator().manual_seed(0))
    for sample in (order, order.flip(0)):  # not among the first rows, and not in their order
        learnt.append(measured(sample))
    assert min(learnt) > 0.95
    assert measured(torch.arange(300)) < 0.7
    with pytest.raises(UsageError, match="not in the retain set"):
        measured(torch.arange(590, 610))


def test_the_first_samples_of_the_authors_are_the_members(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    whole = split(rng, 400, 5, classes=10)
    made = expunge.scenario("laf-task", whole, task="random", seed=3)
    assert made.sample is not None
    assert len(made.sample) == len(made.forget)
    assert bool(torch.isin(made.sample, made.retain.index).all())
    shown: list[np.ndarray] = []

    def fit(x: np.ndarray, y: np.ndarray, seed: int) -> Any:
        shown.append(x[y == 1])
        return _like_xgboost(x, y, seed)

    monkeypatch.setitem(_BOOSTERS, "sklearn", fit)
    test = split(rng, 80, 1, classes=10)
    metrics = [PublishedASR(rows=20, trees="sklearn", held_out=0)]
    for sample in (made.sample, None):
        expunge.evaluate(
            {"m": Table()}, forget=made.forget, retain=made.retain, test=test, metrics=metrics, sample=sample
        )
    first = np.sort(outputs(whole.store.samples[made.sample[:20]]), axis=0)
    assert np.allclose(np.sort(shown[0], axis=0), first)
    assert not np.allclose(np.sort(shown[1], axis=0), first)


def test_members_can_be_shown_augmented() -> None:
    rng = np.random.default_rng(0)
    images = {name: torch.from_numpy(rng.random((60, 1, 8, 8))).float() for name in ("forget", "retain", "test")}
    splits = {n: Split.whole(ResidentStore(x, torch.arange(60) % 2)) for n, x in images.items()}
    evaluation = Evaluation({"m": nn.Sequential(nn.Flatten(), nn.Linear(64, 2))}, splits)
    plain = PublishedASR()._logits(evaluation, "m", "forget")
    shown = PublishedASR(augment="crop-flip")._logits(evaluation, "m", "forget")
    assert plain.shape == shown.shape
    assert not torch.allclose(plain, shown)


def test_missing_xgboost_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xgboost", None)
    with pytest.raises(UsageError, match=r"expunge\[attack\]"):
        scores(PublishedASR(rows=300), (1, 1, 0))


@pytest.mark.parametrize("metric", [PublishedASR(trees="sklearn"), BalancedASR()], ids=["published", "balanced"])
@pytest.mark.parametrize("sizes", [(6, 60, 60), (60, 6, 60), (60, 60, 6)])
def test_too_few_samples_give_no_value(metric: Metric, sizes: tuple[int, int, int]) -> None:
    assert all(value.note for value in scores(metric, (1, 1, 1), sizes).values())
    assert not any(value.note for value in scores(metric, (1, 1, 1), (60, 60, 60)).values())


@pytest.mark.parametrize("attack", ["trees", "logistic"])
def test_balanced_attack_on_known_answers(attack: str) -> None:
    metric = BalancedASR(attack=attack)
    remembered = scores(metric, (9, 9, 0))
    assert min(remembered[name].value for name in ("asr_balanced", "asr_auc", "asr_validation")) > 0.9
    forgotten = scores(metric, (0, 9, 0))
    assert forgotten["asr_validation"].value > 0.9
    assert forgotten["asr_auc"].low < 0.5 < forgotten["asr_auc"].high
    assert forgotten["asr_balanced"].value == pytest.approx(0.5, abs=0.02)
    blind = scores(metric, (9, 0, 0))  # retained and test samples look alike: nothing to learn
    assert blind["asr_validation"].value == pytest.approx(0.5, abs=0.05)


def test_balanced_attack_has_no_bias_where_nothing_is_known() -> None:
    """Over seeds: D_f much larger than the test set, and classes of other shares, move nothing."""
    metric = BalancedASR(attack="logistic")
    found = [scores(metric, (1, 2, 1), (900, 900, 300), seed) for seed in range(12)]
    assert np.mean([f["asr_auc"].value for f in found]) == pytest.approx(0.5, abs=0.015)
    assert np.mean([f["asr_balanced"].value for f in found]) == pytest.approx(0.5, abs=0.015)


def test_balanced_attack_on_a_removed_class() -> None:
    """All of class 2 is forgotten, and the model knows nothing of it: its test samples are the standard."""
    rng = np.random.default_rng(0)
    retain = split(rng, 1500, 9)
    retain = retain.take(retain.index[retain.y != 2])
    forget, test = split(rng, 1200, 0), split(rng, 1500, 9)
    forget = forget.take(forget.index[forget.y == 2])
    strange = test.y == 2
    test.store.samples[strange] = torch.from_numpy(rng.normal(0, 1, (int(strange.sum()), 3))).float()
    evaluation = Evaluation({"m": Table()}, {"forget": forget, "retain": retain, "test": test})
    values = {v.metric: v for v in BalancedASR().compute(evaluation, "m")}
    assert values["asr_auc"].low < 0.5 < values["asr_auc"].high
    assert values["asr_balanced"].value == pytest.approx(0.5, abs=0.06)
