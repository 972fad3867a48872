"""Attacks against closed forms, scikit-learn and brute force."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from expunge.metrics.membership import basic_attack, bootstrap_auc, histogram_weights, weighted_auc


def test_auc_equals_scikit_learn_with_ties_and_weights() -> None:
    rng = np.random.default_rng(0)
    positive, negative = rng.integers(0, 6, 40).astype(float), rng.integers(0, 5, 70).astype(float)
    w_pos, w_neg = rng.random(40), rng.random(70)
    truth = np.repeat([1, 0], [40, 70])
    theirs = roc_auc_score(truth, np.concatenate([positive, negative]), sample_weight=np.concatenate([w_pos, w_neg]))
    assert weighted_auc(positive, negative, w_pos, w_neg) == pytest.approx(theirs)


def test_auc_of_gaussians_has_its_closed_form_inside_the_interval() -> None:
    rng = np.random.default_rng(1)
    value, low, high = bootstrap_auc(rng.normal(1, 1, 800), rng.normal(0, 1, 800), np.ones(800), rng, 300)
    assert low < norm.cdf(1 / 2**0.5) < high
    assert low < value < high


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
