"""Attacks against closed forms, scikit-learn and brute force."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn

from expunge.data.split import ResidentStore, Split
from expunge.metrics.base import Evaluation, Value
from expunge.metrics.membership import (
    RepeatedAttack,
    basic_attack,
    histogram_weights,
    matched,
)


def test_basic_attack_on_separable_and_on_identical_losses() -> None:
    rng = np.random.default_rng(2)
    separable = basic_attack(rng.random(100), 10 + rng.random(100), seed=0)
    assert separable is not None
    assert separable.mean() == 1.0
    scores = [basic_attack(rng.exponential(1, 300), rng.exponential(1, 300), seed=s) for s in range(8)]
    assert 0.44 < np.mean([s.mean() for s in scores if s is not None]) < 0.56


def test_basic_attack_needs_enough_samples_and_survives_infinite_losses() -> None:
    assert basic_attack(np.zeros(9), np.ones(50), seed=0) is None
    assert basic_attack(np.full(40, np.inf), np.zeros(40), seed=0) is not None


def test_histogram_weights_match_class_shares() -> None:
    labels, like = np.array([0, 0, 0, 1, 2]), np.array([0, 1, 1, 1])
    weights = histogram_weights(labels, like)
    shares = np.bincount(labels, weights=weights) / weights.sum()
    assert shares == pytest.approx([0.25, 0.75, 0.0])


def test_matched_takes_of_each_class_what_both_sides_have() -> None:
    first, second = np.array([2, 0, 0, 1, 0, 2, 4]), np.array([3, 1, 0, 1, 2, 2, 2])
    seen: tuple[set[int], set[int]] = (set(), set())
    for draw in range(50):
        mine, theirs = matched(first, second, np.random.default_rng(draw))
        assert sorted(first[mine]) == sorted(second[theirs]) == [0, 1, 2, 2]  # one of class 3 and of 4 has no partner
        assert len(set(mine.tolist())) == len(set(theirs.tolist())) == 4  # without replacement
        seen[0].update(mine.tolist())
        seen[1].update(theirs.tolist())
    assert seen == ({0, 1, 2, 3, 4, 5}, {1, 2, 3, 4, 5, 6})


class Logits(nn.Module):
    """The inputs are the logits."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


KNOWN, EVEN, WRONG = 30.0, 0.0, -30.0  # the label's logit over the other classes': losses of 0, log 4 and 30


def samples(*groups: tuple[int, int, float]) -> Split:
    """Groups of (count, label, the label's logit)."""
    labels = torch.tensor([label for count, label, _ in groups for _ in range(count)])
    logits = torch.zeros(len(labels), 4)
    logits[torch.arange(len(labels)), labels] = torch.tensor([x for count, _, x in groups for _ in range(count)])
    return Split.whole(ResidentStore(logits, labels, classes=list("abcd")))


def repeated(
    forget: Sequence[tuple[int, int, float]], test: Sequence[tuple[int, int, float]], repeats: int = 20, seed: int = 0
) -> list[Value]:
    evaluation = Evaluation({"m": Logits()}, {"forget": samples(*forget), "test": samples(*test)}, seed=seed)
    return list(RepeatedAttack(repeats=repeats).compute(evaluation, "m"))


@pytest.mark.parametrize(
    ("forget", "test", "accuracy"),
    [
        ([(20, 0, KNOWN)], [(60, 0, WRONG)], 1.0),  # separable
        ([(20, 0, WRONG)], [(60, 0, KNOWN)], 1.0),  # separable the other way round: over-forgotten
        ([(20, 0, EVEN)], [(60, 0, EVEN)], 0.5),  # identical: one answer for all, right for half of the held-out
        ([(20, 0, KNOWN)], [(20, 0, KNOWN), (60, 1, WRONG)], 0.5),  # another class's losses do not count
        ([(20, 0, KNOWN), (9, 1, WRONG)], [(20, 0, KNOWN), (60, 2, EVEN)], 0.5),  # nor those without a partner
    ],
)
def test_repeated_attack_on_separable_and_on_identical_losses(
    forget: list[tuple[int, int, float]], test: list[tuple[int, int, float]], accuracy: float
) -> None:
    (value,) = repeated(forget, test)
    assert (value.metric, value.value, value.low, value.high) == ("mia_repeated", accuracy, accuracy, accuracy)


def test_repeated_attack_where_half_of_the_members_give_themselves_away() -> None:
    """Low losses are members; of the rest two thirds are not. Right: half of the members, all others: 3/4."""
    (value,) = repeated([(20, 0, KNOWN), (20, 0, WRONG)], [(40, 0, WRONG)], repeats=200)
    assert value.value == pytest.approx(0.75, abs=0.02)  # a held-out dozen a side: standard error 0.005
    assert value.low is not None
    assert value.high is not None
    assert 0.5 < value.low < 0.75 < value.high < 1.0


def test_repeated_attack_does_not_take_hard_classes_for_membership() -> None:
    """Losses depend on the class alone: guessing by it is right for (30 + 30) of 80 unmatched, for half matched."""
    forget, test = [(30, 0, KNOWN), (10, 1, WRONG)], [(10, 0, KNOWN), (30, 1, WRONG)]
    members, others = np.repeat([0.0, 30.0], [30, 10]), np.repeat([0.0, 30.0], [10, 30])
    unmatched = basic_attack(members, others, seed=0, splits=100, held_out=0.3)
    assert unmatched is not None
    assert unmatched.mean() == pytest.approx(0.75, abs=0.03)
    (value,) = repeated(forget, test, repeats=200)
    # Below 1/2 at most: of 20 samples a class, what the fitted ones have too many of, the held-out have too few of.
    assert 0.3 < value.value < 0.52


def test_repeated_attack_needs_ten_samples_a_side_after_matching() -> None:
    (only,) = repeated([(20, 0, KNOWN)], [(9, 0, WRONG), (60, 1, WRONG)])
    assert "there are 9 forgotten" in only.note
    assert len(repeated([(20, 0, KNOWN)], [(10, 0, WRONG)])) == 1


def test_repeated_attack_is_drawn_from_the_seed_of_the_evaluation() -> None:
    def value(seed: int) -> Value:
        return repeated([(20, 0, KNOWN), (20, 0, WRONG)], [(40, 0, WRONG)], seed=seed)[0]

    assert value(1) == value(1)
    assert value(1) != value(2)
