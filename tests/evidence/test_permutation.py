"""Permutation tests against SciPy's exact ones, by hand, and by how often they are wrong."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from expunge.evidence.permutation import permuted_choices, permuted_groups, smallest_p


def test_groups_are_those_of_the_exact_rank_test() -> None:
    rng = np.random.default_rng(0)
    for shift in (0.0, 1.5):
        members, others = rng.normal(shift, 1, 6), rng.normal(0, 1, 7)
        exact = mannwhitneyu(members, others, method="exact").pvalue
        assert permuted_groups(members, others, (np.zeros(6), np.zeros(7))) == pytest.approx(exact)
    # Two classes, difficult and easy: nothing is exchanged between them, so the only allocations are 2 x 3.
    easy = permuted_groups(np.array([5.0, 0.0]), np.array([4.0, -1.0, -2.0]), (np.array([1, 0]), np.array([1, 0, 0])))
    assert easy == pytest.approx(2 / 6)  # this one, and its opposite
    assert permuted_groups(np.ones(2), np.ones(2), (np.zeros(2), np.ones(2))) == 1.0


def test_many_allocations_are_drawn() -> None:
    rng = np.random.default_rng(1)
    members, others = rng.normal(0.9, 1, 14), rng.normal(0, 1, 60)
    p = permuted_groups(members, others, (np.zeros(14), np.zeros(60)))
    assert p == pytest.approx(mannwhitneyu(members, others).pvalue, abs=0.01)
    assert p == permuted_groups(members, others, (np.zeros(14), np.zeros(60)))


def test_choices_by_hand_and_their_level() -> None:
    rows = [np.array([3.0, 0.0, 1.0]), np.array([5.0, 1.0, 2.0])]
    assert permuted_choices(rows, two_sided=False) == pytest.approx(1 / 9) == smallest_p([3, 3])
    # |sum| is largest for both first; the two smallest together come to -1.07 - .98 against 1.34 + 1.37.
    assert permuted_choices(rows) == pytest.approx(1 / 9)
    assert permuted_choices([np.ones(4)]) == 1.0
    rng = np.random.default_rng(2)
    p = np.array([permuted_choices(list(rng.standard_t(2, (3, 6)))) for _ in range(400)])
    assert 0.02 < (p <= 0.05).mean() < 0.08
    moved = [permuted_choices(list(rng.normal(0, 1, (20, 6)) + 1.2 * (np.arange(6) == 0))) for _ in range(20)]
    assert np.median(moved) < 0.01
