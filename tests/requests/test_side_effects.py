"""What each class lost, on answers written by hand, and intervals against SciPy and simulation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from expunge.core.errors import UsageError
from expunge.data.split import ResidentStore, Split
from expunge.requests.case.canonical import plain
from expunge.requests.case.side_effects import paired_interval, side_effects


class Answers(nn.Module):
    """Says of each sample what is written in one of its two columns."""

    def __init__(self, column: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.column = column

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * nn.functional.one_hot(x[:, self.column].long(), 3).float()


def split(labels: list[int], before: list[int], after: list[int]) -> Split:
    rows = torch.tensor([before, after], dtype=torch.float32).T.contiguous()
    return Split.whole(ResidentStore(rows, torch.tensor(labels), classes=["cat", "dog", "eel"]))


RETAIN = split([0, 0, 1, 1], [0, 0, 1, 0], [0, 1, 1, 1])
TEST = split([0, 0, 1, 2, 2], [0, 0, 1, 2, 2], [0, 0, 0, 0, 0])


def test_each_class_before_and_after() -> None:
    rows = side_effects(Answers(0), Answers(1), retain=RETAIN, test=TEST, device="cpu")
    short = [(r["data"], r["class"], r["samples"], r["before"], r["after"], r["change"], r["gone"]) for r in rows]
    assert short == [
        ("retain", "cat", 2, 1.0, 0.5, -0.5, False),
        ("retain", "dog", 2, 0.5, 1.0, 0.5, False),
        ("test", "cat", 2, 1.0, 1.0, 0.0, False),
        ("test", "dog", 1, 1.0, 0.0, -1.0, False),
        ("test", "eel", 2, 1.0, 0.0, -1.0, True),  # nothing of it is retained: the model was meant to lose it
    ]
    assert all(r["low"] <= r["change"] <= r["high"] or r["samples"] < 3 for r in rows)
    assert plain(rows) == rows


def test_without_retained_data() -> None:
    rows = side_effects(Answers(0), Answers(1), test=TEST, device="cpu")
    assert {row["data"] for row in rows} == {"test"}
    assert not any(row["gone"] for row in rows)


def test_labels_are_needed() -> None:
    with pytest.raises(UsageError, match="test data with labels"):
        side_effects(Answers(0), Answers(1), test=TEST.without_labels(), device="cpu")
    rows = side_effects(Answers(0), Answers(1), retain=RETAIN.without_labels(), test=TEST, device="cpu")
    assert {row["data"] for row in rows} == {"test"}


def test_intervals() -> None:
    assert paired_interval(0, 0, 10_000)[1] < 3e-4
    low, high = paired_interval(3, 9, 50)
    assert (low, high) == pytest.approx(tuple(-x for x in reversed(paired_interval(9, 3, 50))))
    # By hand: n 52, b 9.5, c 3.5.
    half = 1.959963984540054 * np.sqrt(13 - 36 / 52) / 52
    assert (low, high) == pytest.approx((6 / 52 - half, 6 / 52 + half))
    for lost, won, total in ((1, 0, 1), (5, 0, 5), (0, 0, 1)):
        assert -1 <= paired_interval(lost, won, total)[0] <= paired_interval(lost, won, total)[1] <= 1


def test_intervals_cover() -> None:
    """In 19 of 20 samples of a known change; a normal approximation may be off by two points."""
    rng = np.random.default_rng(0)
    counts = rng.multinomial(100, [0.06, 0.02, 0.92], size=4000)
    bounds = np.array([paired_interval(int(lost), int(won), 100) for lost, won, _ in counts])
    assert 0.93 <= ((bounds[:, 0] <= -0.04) & (bounds[:, 1] >= -0.04)).mean() <= 0.98
