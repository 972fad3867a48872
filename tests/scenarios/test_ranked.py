"""Forget sets by a score file: exact sizes, nested, the right end of the ranking, and errors that name the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import expunge
from expunge.core.errors import DataError, UsageError
from expunge.data.split import ResidentStore, Split
from expunge.scenarios.base import parse_scenario
from expunge.scenarios.ranked import ranked

VALUES = np.round(np.random.default_rng(0).random(50), 1)  # many ties


@pytest.fixture
def data() -> Split:
    store = ResidentStore(torch.arange(50.0).reshape(-1, 1), torch.arange(50) % 4, ids=[f"s{i}" for i in range(50)])
    return Split.whole(store).take(torch.arange(5, 45).flip(0))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Scores of the whole data set, in another order than its own."""
    table = pd.DataFrame({"id": [f"s{i}" for i in range(50)], "score": VALUES}).sample(frac=1, random_state=1)
    table.to_csv(tmp_path / "scores.csv", index=False)
    return tmp_path / "scores.csv"


def taken(data: Split, text: str, seed: int = 0) -> set[int]:
    found = parse_scenario(text).split(data, seed)
    joined = torch.cat([found.forget.index, found.retain.index])
    assert torch.equal(joined.sort().values, data.index.sort().values)
    return set(found.forget.index.tolist())


@pytest.mark.parametrize(("level", "far"), [("low", VALUES), ("high", -VALUES), ("medium", abs(VALUES - 0.5))])
def test_a_level_takes_the_right_end(data: Split, file: Path, level: str, far: np.ndarray) -> None:
    inside = VALUES[data.index.numpy()]
    assert (inside.min() + inside.max()) / 2 == 0.5
    chosen = taken(data, f"memorised:level={level},amount=12,scores={file}")
    assert len(chosen) == 12
    others = set(data.index.tolist()) - chosen
    assert max(far[list(chosen)]) <= min(far[list(others)]) + 1e-12


@pytest.mark.parametrize("level", ["low", "medium", "high"])
def test_sets_are_nested_and_the_seed_decides_between_equals_only(data: Split, file: Path, level: str) -> None:
    text = f"memorised:level={level},amount={{}},scores={file}"
    few, many = (taken(data, text.format(n), 3) for n in (7, 19))
    assert few < many
    assert taken(data, text.format(7), 3) == few
    draws = [taken(data, text.format(7), seed) for seed in range(8)]
    assert len({frozenset(one) for one in draws}) > 1
    assert len({tuple(sorted(abs(VALUES[list(one)] - 0.5).round(6))) for one in draws}) == 1


def test_the_worst_case_takes_the_highest_scores(data: Split, file: Path) -> None:
    assert taken(data, f"worst-case:{file},amount=0.25") == taken(
        data, f"memorised:high,amount=10,scores={file}"
    )  # of 40 samples


def test_the_order_is_that_of_sorting() -> None:
    scores = torch.tensor([3.0, 1.0, 2.0, -1.0])
    generator = torch.Generator()
    assert ranked(scores, "low", generator).tolist() == [3, 1, 2, 0]
    assert ranked(scores, "high", generator).tolist() == [0, 2, 1, 3]
    assert ranked(torch.tensor([0.0, 1.0, 0.6, 0.1]), "medium", generator).tolist()[0] == 2


def test_from_python(data: Split, file: Path) -> None:
    found = expunge.scenario("memorised", data, level="low", amount=5, scores=file)
    assert len(found.forget) == 5
    assert found.describe()["options"]["scores"] == str(file)


def test_what_cannot_be_ranked_is_said(data: Split, file: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.csv"
    file.with_name("short.csv").write_text("\n".join(file.read_text().splitlines()[:30]))
    for text, kind, phrase in (
        (f"memorised:scores={short}", DataError, "has no row for"),
        (f"memorised:scores={tmp_path / 'absent.csv'}", DataError, "cannot read .*absent.csv"),
        (f"memorised:level=huge,scores={file}", UsageError, "level"),
        ("memorised:level=high", UsageError, "`scores` is required"),
        (f"memorised:amount=41,scores={file}", UsageError, "there are only 40"),
        (f"memorised:amount=0.001,scores={file}", DataError, "nothing to forget"),
        ("worst-case", UsageError, "`scores` is required"),
    ):
        with pytest.raises(kind, match=phrase):
            parse_scenario(text).split(data)
