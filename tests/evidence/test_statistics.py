"""The statistics of the audit against closed forms, SciPy and brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.spatial.distance import jensenshannon
from scipy.stats import binomtest, norm, ttest_rel
from torch import nn

from expunge.evidence.distances import jsd, klom, tug_of_war
from expunge.evidence.equivalence import compare, compare_paired
from expunge.evidence.rates import (
    epsilon_bound,
    separation,
    smallest_epsilon,
)
from expunge.evidence.signals import SIGNALS, gradient
from expunge.evidence.verdict import over_seeds

RNG = np.random.default_rng(0)


def test_auc_and_tpr_of_two_gaussians() -> None:
    members, others = RNG.normal(1, 1, 4000), RNG.normal(0, 1, 4000)
    found = separation(members, others, np.ones(4000), RNG, resamples=60)
    assert found.auc.value == pytest.approx(norm.cdf(1 / math.sqrt(2)), abs=0.015)
    assert found.auc.high - found.auc.low == pytest.approx(4 * 0.0054, rel=0.3)  # Hanley and McNeil, 1982
    for rate in (0.001, 0.01):
        interval = found.tpr[rate]
        assert interval is not None
        expected = norm.sf(norm.isf(rate) - 1)
        assert interval.low - 0.01 < expected < interval.high + 0.01


def test_a_rate_that_the_samples_cannot_resolve_is_not_given() -> None:
    found = separation(RNG.normal(size=50), RNG.normal(size=300), np.ones(300), RNG, resamples=20)
    assert found.tpr[0.001] is None
    assert found.tpr[0.01] is not None


def test_epsilon_of_a_perfect_of_a_useless_and_of_a_turned_attack() -> None:
    perfect = epsilon_bound(500, 500, 0, 500)
    high = binomtest(0, 500).proportion_ci(0.975, method="exact").high
    low = binomtest(500, 500).proportion_ci(0.975, method="exact").low
    assert perfect == pytest.approx(math.log(low / high))
    assert smallest_epsilon(500, 500) == perfect
    assert epsilon_bound(250, 500, 250, 500) == 0.0
    assert epsilon_bound(0, 500, 500, 500) == 0.0  # called the wrong way round: another attack would catch it
    assert epsilon_bound(500, 500, 0, 500, delta=0.5) < perfect
    assert smallest_epsilon(10, 10) < 1.5


def test_epsilon_bound_holds_for_a_mechanism_of_known_epsilon() -> None:
    """Randomised response with epsilon 1: the bound may exceed it in at most 5 % of the trials."""
    p = math.e / (1 + math.e)
    trials = 400
    above = sum(
        epsilon_bound(int(RNG.binomial(300, p)), 300, int(RNG.binomial(300, 1 - p)), 300) > 1 for _ in range(trials)
    )
    assert above / trials <= 0.05
    assert epsilon_bound(int(3000 * p), 3000, int(3000 * (1 - p)), 3000) > 0.8


def test_jsd_is_scipys_for_any_number_of_classes() -> None:
    for classes in (2, 7, 100):
        a, b = torch.randn(5, classes), torch.randn(5, classes)
        expected = [jensenshannon(p, q, base=2) ** 2 for p, q in zip(a.softmax(1), b.softmax(1), strict=True)]
        assert jsd(a, b).tolist() == pytest.approx(expected, abs=1e-6)
    assert float(jsd(a, a).max()) == 0.0


def test_klom_of_equal_and_of_shifted_populations() -> None:
    same = klom(RNG.normal(size=(400, 6)), RNG.normal(size=(400, 6)))
    shifted = klom(RNG.normal(1, 1, (400, 6)), RNG.normal(size=(400, 6)))
    assert same.max() < 0.1
    assert shifted.mean() == pytest.approx(0.5, abs=0.15)  # KL of two unit Gaussians one apart
    assert klom(np.ones((5, 2)), np.ones((5, 2))).tolist() == [0.0, 0.0]


def test_tug_of_war_by_hand() -> None:
    assert tug_of_war({"forget": 0.9, "test": 0.5}, {"forget": 0.8, "test": 0.7}) == pytest.approx(0.9 * 0.8)


def test_signals_by_their_definitions() -> None:
    z = torch.tensor([[2.0, 0.5, -1.0], [0.0, 3.0, 0.0]], dtype=torch.float64)
    y = torch.tensor([0, 2])
    p = z.softmax(1)
    right = p[torch.arange(2), y]
    expected = {
        "loss": right.log(),
        "confidence": (right / (1 - right)).log(),
        "margin": torch.tensor([1.5, -3.0]),
        "entropy": (p * p.log()).sum(1),
        "largest probability": p.max(1).values.log(),
        "modified entropy": torch.stack(
            [
                (1 - p[i, y[i]]) * p[i, y[i]].log()
                + sum(p[i, k] * (1 - p[i, k]).log() for k in range(3) if k != int(y[i]))
                for i in range(2)
            ]
        ),
    }
    for name, score in SIGNALS.items():
        assert torch.allclose(score(z, y), expected[name].double()), name
    extreme = torch.tensor([[80.0, -80.0]])
    for name, score in SIGNALS.items():
        assert bool(torch.isfinite(score(extreme, torch.tensor([1]))).all()), name


def test_gradient_norm_is_that_of_autograd() -> None:
    layer, e, y = nn.Linear(4, 3), torch.randn(2, 4), torch.tensor([1, 2])
    norms = []
    for i in range(2):
        grads = torch.autograd.grad(F.cross_entropy(layer(e[i : i + 1]), y[i : i + 1]), list(layer.parameters()))
        norms.append(float(sum(g.square().sum() for g in grads) ** 0.5))
    assert (-gradient(layer(e).detach(), y, e)).tolist() == pytest.approx(norms, rel=1e-5)


def test_equivalence_keeps_its_level_on_both_sides() -> None:
    """At a true difference of exactly delta it is shown in at most 5 %; a difference that is not there likewise."""
    rng = np.random.default_rng(1)
    trials, shown, different = 1500, 0, 0
    for _ in range(trials):
        retrained = rng.normal(0.8, 0.01, 6).tolist()
        shown += compare("x", float(rng.normal(0.85, 0.01)), retrained, 0.05).equivalent
        different += compare("x", float(rng.normal(0.8, 0.01)), retrained, 0.05).p_difference < 0.05
    assert shown / trials < 0.065
    assert different / trials == pytest.approx(0.05, abs=0.02)


def test_equivalence_is_found_where_it_is_and_needs_models() -> None:
    assert compare("x", 0.805, [0.80, 0.81, 0.79, 0.80, 0.805], 0.05).equivalent
    assert not compare("x", 0.80, [0.80, 0.81], 0.05).equivalent  # two models prove little
    alike = compare("x", 0.81, [0.8, 0.8, 0.8], 0.05)
    assert alike.equivalent
    assert alike.p_difference < 1e-9
    with pytest.raises(ValueError, match="at least two"):
        compare("x", 0.8, [0.8], 0.05)


def test_references_that_agree_by_chance_do_not_make_all_others_differ() -> None:
    same = [0.95, 0.95, 0.95]
    assert compare("x", 0.9667, same, 0.05).p_difference < 1e-6
    careful = compare("x", 0.9667, same, 0.05, resolution=1 / 60)
    assert careful.spread == 1 / 60
    assert careful.p_difference > 0.3


def test_the_paired_test_is_scipys() -> None:
    mine, theirs = [0.81, 0.85, 0.80, 0.90], [0.70, 0.78, 0.71, 0.80]
    found = compare_paired("x", mine, theirs, 0.05)
    assert found.p_difference == pytest.approx(ttest_rel(mine, theirs).pvalue)
    assert found.difference == pytest.approx(np.mean(mine) - np.mean(theirs))
    low, high = ttest_rel(mine, theirs).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert not found.equivalent
    assert compare_paired("x", theirs, [v + 0.001 * (-1) ** i for i, v in enumerate(theirs)], 0.05).equivalent


def test_words_over_seeds() -> None:
    def models(forget: float, test: float) -> list[dict[str, float]]:
        wiggle = (0.004, -0.003, 0.001, -0.002)
        return [{"forget accuracy": forget + w, "test accuracy": test - w} for w in wiggle]

    original, retrained = models(0.99, 0.8), models(0.70, 0.8)
    words = {
        "forgotten": models(0.705, 0.799),
        "not forgotten": models(0.95, 0.8),
        "over-forgotten": models(0.30, 0.8),
        "damaged": models(0.70, 0.5),
    }
    for word, unlearned in words.items():
        found, reasons, comparisons = over_seeds(original, unlearned, retrained, resolution={"forget accuracy": 0.01})
        assert found == word, reasons
        assert len(comparisons) == 2
    noisy = [{"forget accuracy": v, "test accuracy": 0.8} for v in (0.5, 0.9, 0.6, 0.85)]
    assert over_seeds(original, noisy, retrained)[0] == "not enough evidence"
