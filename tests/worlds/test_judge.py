"""How a cell is judged, from numbers worked out by hand; and that the committed ranks are those of the cells."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.worlds.data import Data
from benchmarks.worlds.judge import attack_auc, classify, gap, scores
from benchmarks.worlds.requests import REQUESTS, Request, make_request
from benchmarks.worlds.tables import merge, overview, ranks, read

ROOT = Path(__file__).parents[2]
REFERENCES = [{"forget": 0.80, "retain": 1.0, "test": 0.80, "auc": 0.50}, {"forget": 0.82, "retain": 1.0, "test": 0.80,
              "auc": 0.50}]  # fmt: skip
ORIGINAL = {"forget": 1.0, "retain": 1.0, "test": 0.80, "auc": 0.65}


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ({"forget": 0.82, "retain": 0.98, "test": 0.79, "auc": 0.54}, "good"),
        ({"forget": 0.82, "retain": 0.96, "test": 0.79, "auc": 0.54}, "partial"),
        ({"forget": 0.90, "retain": 1.0, "test": 0.80, "auc": 0.56}, "partial"),
        ({"forget": 0.99, "retain": 1.0, "test": 0.80, "auc": 0.64}, "nothing"),
        ({"forget": 0.70, "retain": 1.0, "test": 0.80, "auc": 0.50}, "over-forgot"),
        ({"forget": 0.81, "retain": 1.0, "test": 0.80, "auc": 0.40}, "over-forgot"),
        ({"forget": 0.30, "retain": 0.6, "test": 0.40, "auc": 0.50}, "destroyed"),
        (ORIGINAL, "nothing"),
    ],
)
def test_classes_of_cells(cell: dict[str, float], expected: str) -> None:
    assert classify(cell, ORIGINAL, REFERENCES) == expected


def test_the_gap_is_the_mean_of_four_differences_in_points() -> None:
    assert gap({"forget": 0.04, "retain": -0.02, "test": 0.0, "auc": -0.06}) == pytest.approx(3.0)


def test_attack_compares_samples_of_one_class_under_one_label() -> None:
    on_forget = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    on_test = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 9.0]])
    truth = torch.tensor([0, 0, 1])
    # Sample 0, class 0 as 0: losses of the two class-0 test samples, one above and one below: 1/2.
    # Sample 1, class 0 called 1: their losses under label 1 are both larger than log 2: 1.
    auc = attack_auc(on_forget, torch.tensor([0, 1]), torch.tensor([0, 0]), on_test, truth)
    assert auc == pytest.approx(0.75)


def test_test_accuracy_counts_the_classes_that_stay() -> None:
    x, y = torch.eye(3), torch.arange(3)
    data = Data(x=x, y=y, held_x=x, held_y=y, test_x=x.flip(1), test_y=y, classes=3)
    request = Request(forget=torch.tensor([0]), y=y, truth=y)
    judged = scores(torch.nn.Identity(), data, request)
    assert judged["forget"] == judged["retain"] == 1.0
    assert judged["test"] == pytest.approx(1 / 2)  # of classes 1 and 2 the flipped inputs get 1 right


@pytest.mark.parametrize("name", REQUESTS)
def test_requests_are_fixed_and_leave_something(name: str) -> None:
    y = torch.arange(1200) % 5
    x = torch.arange(1200.0)[:, None]
    data = Data(x=x, y=y, held_x=x, held_y=y, test_x=x, test_y=y, classes=5)
    first, again = make_request(name, data), make_request(name, data)
    assert torch.equal(first.forget, again.forget)
    assert torch.equal(torch.cat([first.forget, first.retain]).sort().values, torch.arange(1200))
    wrong = (first.y != first.truth).nonzero()[:, 0]
    assert torch.equal(wrong, first.forget if name == "wrong" else wrong[:0])


def test_rows_replace_those_of_the_same_cell(tmp_path: Path) -> None:
    path = tmp_path / "cells.csv"
    rows = read(ROOT / "results" / "worlds" / "cells.csv")[:3]
    merge(path, rows)
    merge(path, [{**rows[0], "class": "destroyed"}])
    again = read(path)
    assert len(again) == 3
    assert sum(row["class"] == "destroyed" for row in again) >= 1
    assert "| method |" in overview(again)


def test_committed_ranks_are_those_of_the_committed_cells() -> None:
    made = ranks(read(ROOT / "results" / "worlds" / "cells.csv"))
    for path in (ROOT / "results" / "worlds" / "ranks.json", ROOT / "src" / "expunge" / "methods" / "ranks.json"):
        assert json.loads(path.read_text(encoding="utf-8")) == made
    assert set(made["unsee"]) <= set(REQUESTS)
