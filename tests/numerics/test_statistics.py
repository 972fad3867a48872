"""Shared statistics against scikit-learn, SciPy, brute force and resampling."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest, norm
from sklearn.metrics import roc_auc_score

from expunge.numerics.statistics import (
    auc_interval,
    clopper_pearson,
    delong,
    mean_of_shares,
    placements,
    tail_rates,
    tpr_at,
    weighted_auc,
)


def test_auc_equals_scikit_learn_with_ties_and_weights() -> None:
    rng = np.random.default_rng(0)
    positive, negative = rng.integers(0, 6, 40).astype(float), rng.integers(0, 5, 70).astype(float)
    w_pos, w_neg = rng.random(40), rng.random(70)
    truth = np.repeat([1, 0], [40, 70])
    theirs = roc_auc_score(truth, np.concatenate([positive, negative]), sample_weight=np.concatenate([w_pos, w_neg]))
    assert weighted_auc(positive, negative, w_pos, w_neg) == pytest.approx(theirs)


def test_delong_by_the_double_loop() -> None:
    rng = np.random.default_rng(1)
    members, others = rng.integers(0, 9, 30) + 1.0, rng.integers(0, 9, 45) * 1.0
    wins = (members[:, None] > others) + 0.5 * (members[:, None] == others)
    value, error = delong(members, others, np.ones(45))
    assert value == pytest.approx(wins.mean())
    assert error**2 == pytest.approx(wins.mean(1).var(ddof=1) / 30 + wins.mean(0).var(ddof=1) / 45)
    assert placements(members, others) == pytest.approx(wins.mean(1))


def test_a_weight_of_two_is_a_sample_twice_in_value_and_nearly_in_width() -> None:
    rng = np.random.default_rng(2)
    members, others = rng.normal(0.3, 1, 200), rng.normal(size=3000)
    weights = np.repeat([2.0, 1.0], 1500)
    value, error = delong(members, others, weights)
    draws = []
    for _ in range(400):
        at = rng.integers(3000, size=3000)
        draws.append(weighted_auc(members[rng.integers(200, size=200)], others[at], np.ones(200), weights[at]))
    assert value == pytest.approx(weighted_auc(members, others, np.ones(200), weights))
    assert error == pytest.approx(np.std(draws), rel=0.12)


def test_intervals_of_gaussians_cover_the_closed_form() -> None:
    rng = np.random.default_rng(3)
    truth = norm.cdf(1 / 2**0.5)
    found = [auc_interval(rng.normal(1, 1, 60), rng.normal(0, 1, 90)) for _ in range(300)]
    covered = np.mean([one.low <= truth <= one.high for one in found])
    assert 0.91 <= covered <= 0.99


def test_perfect_separation_still_has_a_width() -> None:
    found = auc_interval(np.array([5.0, 6.0, 7.0]), np.arange(4.0))
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(clopper_pearson(3, 3)[0])


def test_tpr_by_brute_force_also_with_ties_and_weights() -> None:
    rng = np.random.default_rng(4)
    for _ in range(20):
        members, others = rng.integers(0, 6, 30).astype(float), rng.integers(0, 5, 40).astype(float)
        weights = rng.integers(1, 4, 40).astype(float)
        best = 0.0
        for threshold in (*np.unique(others), -1.0):
            if weights[others > threshold].sum() / weights.sum() <= 0.2:
                best = max(best, float((members > threshold).mean()))
        assert tpr_at(members, others, weights, 0.2) == pytest.approx(best)


@pytest.mark.parametrize(("size", "rate"), [(400, 0.01), (400, 0.2), (3000, 0.01)])
def test_poisson_weights_on_the_tail_give_the_intervals_of_whole_resamples(size: int, rate: float) -> None:
    rng = np.random.default_rng(5)
    members, others, weights = rng.normal(1, 1, 150), rng.normal(size=size), rng.integers(1, 3, size) * 1.0
    draws = []
    for _ in range(1500):
        at = rng.integers(size, size=size)
        draws.append(tpr_at(members[rng.integers(150, size=150)], others[at], weights[at], rate))
    (found,) = tail_rates(members, others, weights, [rate], rng, 4000)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=0.025)
    assert found.value == tpr_at(members, others, weights, rate)
    assert found.low <= found.value <= found.high


@pytest.mark.parametrize(("k", "n"), [(0, 10), (10, 10), (3, 17), (50, 1000)])
def test_clopper_pearson_is_scipys(k: int, n: int) -> None:
    expected = binomtest(k, n).proportion_ci(0.95, method="exact")
    assert clopper_pearson(k, n) == pytest.approx((expected.low, expected.high))


def test_mean_of_shares_by_hand_and_by_simulation() -> None:
    caught, cleared = np.array([True, True, False, True]), np.array([True, False, False])
    found = mean_of_shares(caught, cleared, np.array([2.0, 1.0, 1.0]))
    assert found.value == pytest.approx((3 / 4 + 2 / 4) / 2)
    assert found.low < found.value < found.high
    rng = np.random.default_rng(6)
    runs = [mean_of_shares(rng.random(50) < 0.9, rng.random(80) < 0.7, np.ones(80)) for _ in range(300)]
    assert 0.92 <= np.mean([one.low <= 0.8 <= one.high for one in runs]) <= 0.99
