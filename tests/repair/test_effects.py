"""Effects of a repair, held against the library's own metric, closed forms, and damage that was planted."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import binom
from torch import Tensor, nn

from expunge.data.split import ResidentStore, Split
from expunge.metrics.base import Evaluation
from expunge.metrics.confusion import ConfusionErrors
from expunge.repair.effects import Turned, class_effects, overall, pair_effects, suspect_effects
from expunge.repair.neighbours import Neighbours, compare, find_neighbours, newcombe, table, welch
from expunge.repair.suspects import read_suspects
from expunge.repair.words import verdict

CLASSES = 4


class Table(nn.Module):
    """Sample i (its first number) gets the logits in row i; the second linear layer is a head that passes them on."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = nn.Parameter(rows)
        self.head = nn.Linear(CLASSES, CLASSES, bias=False)
        nn.init.eye_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rows[x[:, 0].long()])


def answers(said: Tensor, sure: float = 4.0) -> Table:
    return Table(sure * torch.eye(CLASSES)[said])


@pytest.fixture
def problem():
    """60 samples; 12 of classes 1 and 2 are swapped in the data. Before: all given labels; after: half mended."""
    true = torch.arange(60) % CLASSES
    given = true.clone()
    swapped = torch.arange(60)[(true == 1) | (true == 2)][:12]
    given[swapped] = 3 - given[swapped]
    store = ResidentStore(torch.arange(60.0)[:, None], true, classes=("ant", "bee", "cow", "doe"), name="herd")
    train = Split.whole(store).with_labels(given)
    suspects = read_suspects(pd.DataFrame({"position": swapped, "suggested": true[swapped]}), train)
    before = given.clone()
    before[40:44] = (before[40:44] + 1) % CLASSES
    after = before.clone()
    after[swapped[:6]] = true[swapped[:6]]
    after[44:47] = (after[44:47] + 1) % CLASSES
    forget = train.take(suspects.positions, "forget")
    retain = train.take([i for i in range(60) if i not in set(swapped.tolist())], "retain")
    test = Split.whole(store, "test")
    models = {"original": answers(before), "repaired": answers(after)}
    evaluation = Evaluation(models, {"forget": forget, "retain": retain, "test": test})
    return evaluation, suspects, true, before, after


def test_errors_of_a_pair_are_those_of_the_metric(problem):
    evaluation, suspects, *_ = problem
    rows = pair_effects(evaluation, suspects)
    assert [row["split"] for row in rows] == ["test", "retain"]
    for row in rows:
        assert row["names"] == ["bee", "cow"]
        assert (row["suspects"], row["there"] + row["back"]) == (12, 12)
        for model in ("original", "repaired"):
            metric = ConfusionErrors(classes=(1, 2))
            known = {value.metric: value.value for value in metric.compute(evaluation, model)}
            assert row["models"][model]["ic_error"]["share"] == known[f"{row['split']}_ic_error"]
            assert row["models"][model]["fgt_error"]["count"] == known[f"{row['split']}_fgt_count"]


def test_several_pairs_have_a_row_of_their_own_and_one_together(problem):
    evaluation, suspects, true, *_ = problem
    suggested = suspects.suggested.clone()
    suggested[0] = 3
    mixed = dataclasses.replace(suspects, suggested=suggested)
    rows = [row for row in pair_effects(evaluation, mixed) if row["split"] == "test"]
    assert [row["names"] for row in rows] == [["bee", "cow"], ["cow", "doe"], ["all pairs"]]
    assert rows[-1]["suspects"] == 12
    assert rows[-1]["samples"] == int((true != 0).sum())
    exchanged = [row["models"]["original"]["fgt_error"]["count"] for row in rows]
    assert exchanged[2] == exchanged[0] + exchanged[1]


def test_classes_and_turns_are_counted_by_hand(problem):
    evaluation, suspects, true, before, after = problem
    rows = {(row["split"], row["class"]): row for row in class_effects(evaluation, suspects)}
    assert len(rows) == 2 * CLASSES
    for number in range(CLASSES):
        mine = true == number
        row = rows["test", number]
        assert row["models"]["repaired"]["count"] == int((after[mine] == number).sum())
        assert row["turned"]["lost"] == int(((before == true) & (after != true))[mine].sum())
        assert row["turned"]["won"] == int(((before != true) & (after == true))[mine].sum())
        assert row["given"] == int((suspects.given == number).sum())
    assert overall(evaluation)[0]["turned"] == {"lost": 3, "won": 6, "p": pytest.approx(0.5078125)}
    found = suspect_effects(evaluation, suspects)
    assert (found["original"]["given"], found["repaired"]["given"], found["repaired"]["suggested"]) == (12, 6, 6)
    assert found["original"]["confidence"] > 0.9


def test_mcnemar_is_the_binomial_tail():
    for lost, won in ((0, 8), (3, 9), (5, 5)):
        assert Turned(lost, won).p == pytest.approx(min(1.0, 2 * binom.cdf(min(lost, won), lost + won, 0.5)))
    assert Turned(0, 0).p == 1.0


def test_newcombe_gives_the_published_intervals():
    """Table II of the paper, method 10: 56/70 - 48/80 and 9/10 - 3/10."""
    found = newcombe(56, 70, 48, 80)
    assert (round(found["low"], 4), round(found["high"], 4)) == (0.0524, 0.3339)
    found = newcombe(9, 10, 3, 10)
    assert (round(found["low"], 4), round(found["high"], 4)) == (0.1705, 0.8090)
    assert newcombe(0, 0, 1, 5) is None


def test_welch_covers_the_truth_and_stands_still_values():
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        found = welch(random.normal(0.3, 1, 30), random.normal(0, 3, 50))
        covered += found["low"] <= 0.3 <= found["high"]
    assert 0.91 <= covered / 300 <= 0.98
    assert welch(np.zeros(3), np.zeros(5)) == {"value": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}


class Points(nn.Module):
    """Features are the inputs; a head on them."""

    def __init__(self) -> None:
        super().__init__()
        self.pass_on = nn.Linear(2, 2)
        self.head = nn.Linear(2, 2)
        nn.init.eye_(self.pass_on.weight)
        nn.init.zeros_(self.pass_on.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pass_on(x))


@pytest.fixture
def plane():
    points = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    labels = (points[:, 0] > 0).long()
    train = Split.whole(ResidentStore(points, labels, name="plane"))
    near_zero = points.norm(dim=1).argsort()
    return train.take(near_zero[:5].sort().values, "forget"), train.take(near_zero[5:].sort().values, "retain")


def test_neighbours_are_those_of_brute_force(plane):
    suspects, retain = plane
    found = find_neighbours(Points(), suspects, retain, k=7, seed=0, device="cpu")
    apart = torch.cdist(suspects.inputs().double(), retain.inputs().double())
    nearest = {row for one in apart for row in one.argsort()[:7].tolist()}
    assert set(found.rows.tolist()) == nearest
    torch.testing.assert_close(found.distance, apart[:, found.rows].min(0).values)
    assert torch.equal(found.nearest, apart[:, found.rows].argmin(0))
    assert bool((found.distance.diff() >= 0).all())


def test_controls_are_as_many_others_and_of_the_same_classes(plane):
    suspects, retain = plane
    found = find_neighbours(Points(), suspects, retain, k=7, seed=0, device="cpu")
    for rows in found.controls.values():
        assert len(rows) == len(rows.unique()) == len(found.rows)
        assert not torch.isin(rows, found.rows).any()
    same = retain.y[found.controls["same classes"]]
    assert torch.equal(same.bincount(), retain.y[found.rows].bincount())
    again = find_neighbours(Points(), suspects, retain, k=7, seed=0, device="cpu")
    other = find_neighbours(Points(), suspects, retain, k=7, seed=1, device="cpu")
    assert torch.equal(found.controls["random"], again.controls["random"])
    assert not torch.equal(found.controls["random"], other.controls["random"])
    most = find_neighbours(Points(), suspects, retain, k=395, seed=0, device="cpu")
    assert len(most.rows) == len(retain) // 2  # so that there is somebody to compare with


class Bumped(nn.Module):
    """Right by the sign of the first number, but wrong within `radius` of the centre."""

    def __init__(self, radius: float) -> None:
        super().__init__()
        self.radius = radius

    def forward(self, x: Tensor) -> Tensor:
        sign = torch.where(x.norm(dim=1) < self.radius, -1.0, 1.0) * x[:, 0].sign()
        return torch.stack([-3 * sign, 3 * sign], 1)


@pytest.mark.parametrize(
    ("radius", "words"), [(0.4, "turned wrong more often than"), (0.0, "show no clear difference from")]
)
def test_planted_damage_near_the_suspects_is_found_and_only_then(plane, radius, words):
    suspects, retain = plane
    near = find_neighbours(Points(), suspects, retain, k=10, seed=0, device="cpu")
    evaluation = Evaluation(
        {"original": Bumped(0.0), "repaired": Bumped(radius)}, {"forget": suspects, "retain": retain}
    )
    rows = compare(evaluation, near)
    assert [row["control"] for row in rows] == ["random", "same classes"]
    assert [verdict(row) for row in rows] == [words, words]
    frame = table(evaluation, near, suspects.ids)
    hurt = frame[(frame["group"] == "neighbour") & frame["hurt"]]
    assert len(hurt) == rows[0]["lost"][0]
    inside = retain.inputs().norm(dim=1) < radius
    assert set(hurt["position"]) == set(retain.index[near.rows[inside[near.rows]]].tolist())
    assert frame["hurt"].iloc[: len(hurt)].all()


def test_a_control_of_one_sample_is_left_out(plane):
    suspects, retain = plane
    evaluation = Evaluation({"original": Bumped(0.0), "repaired": Bumped(0.4)}, {"forget": suspects, "retain": retain})
    few = Neighbours(torch.arange(3), torch.zeros(3).long(), torch.zeros(3).double(), {"random": torch.tensor([9])})
    assert compare(evaluation, few) == []
