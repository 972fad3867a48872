"""Attacks with few other models, exposure, and representations, each against an independent oracle."""

from __future__ import annotations

from itertools import combinations, permutations

import numpy as np
import pytest
import torch
from numpy.random import Generator
from scipy.special import expit

from expunge.core.errors import UsageError
from expunge.data.split import ResidentStore, Split
from expunge.evidence.dependence import (
    distribution_jsd,
    idi,
    information,
    residual_knowledge,
    sde,
    split_half_dependence,
)
from expunge.evidence.exposure import exposure, worst_group, worst_off
from expunge.evidence.few_shadows import columns, iam, iam_of_references, quantile_attack, rmia_by_references
from expunge.evidence.shadows import ShadowPlan, ShadowScores, half_in
from expunge.evidence.targets import insert_canaries, vulnerability, vulnerable


@pytest.fixture
def rng() -> Generator:
    return np.random.default_rng(0)


def test_rmia_is_the_share_of_unseen_samples_that_a_target_outdoes(rng: Generator) -> None:
    """The definition, term by term."""
    members, others = rng.normal(1, 2, 12), rng.normal(0, 2, 10)
    references = [rng.normal(0, 2, (3, size)) for size in (12, 10)]
    found = rmia_by_references(members, others, references[0], references[1], seed=3)
    usual_x, usual_z = ((1.3 * expit(phi).mean(0) + 0.7) / 2 for phi in references)
    ratio_x, ratio_z = expit(members) / usual_x, expit(others) / usual_z
    shares = [[np.mean([x / ratio_z[z] >= 2 for z in half]) for x in ratio_x] for half in _halves(10)]
    assert any(np.allclose(found.statistic[:12], share) for share in shares)
    assert found.member.sum() == 12


def _halves(count: int) -> list[list[int]]:
    return [list(half) for half in combinations(range(count), count // 2)]


def test_rmia_and_quantile_regression_find_members_and_only_these(rng: Generator) -> None:
    """Difficulty varies by input: a loss attack sees little, both attacks calibrate it away."""
    hard = [rng.normal(0, 3, size) for size in (200, 400)]
    x = [np.stack([h, rng.normal(size=len(h))], 1) for h in hard]
    clean = [h + rng.normal(0, 0.7, len(h)) for h in hard]
    references = [h + rng.normal(0, 0.7, (4, len(h))) for h in hard]
    known = [clean[0] + 1.5, clean[1]]
    for shift, low, high in ((known, 0.75, 1.0), (clean, 0.4, 0.6)):
        attack = quantile_attack(shift[0], shift[1], x[0], x[1], seed=1)
        assert low <= attack.auc.value <= high
        rmia = rmia_by_references(shift[0], shift[1], references[0], references[1], seed=1)
        assert (low - 0.12 if shift is known else low) <= rmia.auc.value <= high
    assert quantile_attack(known[0], known[1], x[0], x[1]).epsilon > 0
    assert quantile_attack(clean[0], clean[1], x[0], x[1]).epsilon < 0.5


def test_columns_keep_what_varies() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(60, 100, generator=g) * torch.cat([torch.ones(3) * 1.0, torch.zeros(97)])
    split = Split.whole(ResidentStore(x, torch.arange(60) % 3))
    mine, others = columns(split.take(range(20)), split.take(range(20, 60)))
    assert mine.shape == (20, 35)
    assert others.shape == (40, 35)
    assert np.linalg.matrix_rank(others[:, :32], tol=1e-3) == 3


def test_iam_runs_from_retrained_to_original(rng: Generator) -> None:
    original, retrained = rng.normal(4, 1, 500), rng.normal(0, 1, 500)
    values = [iam((1 - t) * retrained + t * original, original, retrained).mean() for t in (0, 0.5, 1)]
    assert values[0] < values[1] < values[2]
    # One sample, one step, by hand: F(0) and F(-(o - r) / b), where b is the spread of the differences.
    apart = np.array([2.0, 4.0])
    by_hand = (np.exp(-np.exp(0.0)) + np.exp(-np.exp(apart[0] / apart.std()))) / 2
    assert iam(np.zeros(2), apart, np.zeros(2), steps=1)[0] == pytest.approx(by_hand)
    references = rng.normal(0, 1, (3, 500))
    (mine, before), theirs = iam_of_references(references, original, [rng.normal(0, 1, 500), original])
    assert min(theirs) - 0.05 < mine < max(theirs) + 0.05 < before


def test_exposure_of_retained_samples_is_paired(rng: Generator) -> None:
    """Against a bootstrap of both sides; and where nothing changes, the interval is a point."""
    from sklearn.metrics import roc_auc_score

    shared, unseen = rng.normal(0.3, 1, 300), rng.normal(0, 1, 300)
    after = (shared + rng.normal(0.3, 0.3, 300), unseen + rng.normal(0, 0.3, 300))
    found = exposure((shared, unseen), after)
    labels = np.repeat([1, 0], 300)
    auc = [roc_auc_score(labels, np.concatenate(side)) for side in ((shared, unseen), after)]
    assert found.change.value == pytest.approx(auc[1] - auc[0])
    draws = []
    for _ in range(400):
        i, j = rng.integers(300, size=300), rng.integers(300, size=300)
        sides = [(a[i][:, None] > b[j]).mean() for a, b in ((shared, unseen), after)]
        draws.append(sides[1] - sides[0])
    assert (found.change.high - found.change.low) / 2 == pytest.approx(1.96 * np.std(draws), rel=0.15)
    same = exposure((shared, unseen), (shared, unseen))
    assert (same.change.low, same.change.high) == (0.0, 0.0)
    # At 1 % false alarms at most 3 of 300 unseen samples may exceed the threshold.
    threshold = np.sort(unseen)[-4]
    assert found.caught_before == pytest.approx((shared > threshold).mean())


def test_worst_groups_and_samples() -> None:
    z = np.array([0.0, 1, 2, 3, 4, 10, 10, 10, 1, 1, 1, 1, 1])
    groups = np.array([0] * 5 + [1] * 3 + [2] * 5)
    assert worst_group(z, groups) == (0, pytest.approx(10 / np.sqrt(5)))  # group 1 is too small to count
    assert worst_group(z[:3], groups[:3]) == (-1, 0.0)
    assert worst_off(z, 0.2) == pytest.approx(10)
    assert worst_off(z[:3]) == 2


def test_information_and_idi(rng: Generator) -> None:
    member = np.arange(200) < 100
    apart = rng.normal(0, 1, (200, 5)) + 2.5 * member[:, None] * np.eye(5)[0]
    told, nothing = (information(torch.from_numpy(x @ x.T), member) for x in (apart, rng.normal(0, 1, (200, 5))))
    # The Bayes rule of two unit Gaussians 2.5 apart: H(Y) - E[-log2 p(y | z)], by the samples themselves.
    p = 1 / (1 + np.exp(-(2.5 * apart[:, 0] - 2.5**2 / 2)))
    exact = 1 + np.log2(np.where(member, p, 1 - p)).mean()
    assert told == pytest.approx(exact, abs=0.12)
    assert nothing < 0.05
    original, retrained = {"a": 0.8, "b": 0.6}, [{"a": 0.2, "b": 0.1}, {"a": 0.0, "b": 0.1}]
    assert idi(original, original, retrained) == pytest.approx(1)
    assert idi({"a": 0.1, "b": 0.1}, original, retrained) == pytest.approx(0)
    assert np.isnan(idi(original, {"a": 0.1, "b": 0.1}, retrained))


def test_hsic_of_halves_and_sde(rng: Generator) -> None:
    x = rng.normal(size=(8, 3))
    found = split_half_dependence(x, seed=4, shuffles=30)
    h = np.eye(4) - 1 / 4

    def hsic(a: list[int], b: list[int]) -> float:
        ka, kb = (np.exp(-np.square(x[i][:, None] - x[i][None]).sum(2) / (2 * 3)) for i in (a, b))
        return float(np.trace(ka @ h @ kb @ h)) / 9

    pairings = [(a, [i for i in range(8) if i not in a]) for a in _halves(8)]
    possible = np.array([hsic(a, list(b)) for a, rest in pairings for b in permutations(rest)])
    assert all(np.isclose(possible, value).any() for value in found)
    assert len(np.unique(found.round(12))) > 20
    alike, tight = ([scale * rng.normal(size=(64, 4)) for _ in range(2)] for scale in (1.0, 0.2))
    assert sde(alike[0], tight[0], alike[1]) < 0.45 < 0.55 < sde(tight[0], tight[1], alike[1])
    assert distribution_jsd(np.arange(10.0), np.arange(10.0)) == 0
    assert residual_knowledge(0.9, [0.5, 0.4]) == pytest.approx(2)
    assert np.isnan(residual_knowledge(0.9, [0.0]))


def test_vulnerable_targets_are_those_that_shadows_memorise(rng: Generator) -> None:
    count = 40
    trained = half_in(count, 8, rng)
    memorised = np.arange(count) % 4 == 0
    plain = rng.normal(0, 1, (8, count)) + 6 * trained * memorised
    x = Split.whole(ResidentStore(torch.zeros(count, 1), torch.zeros(count).long(), classes=["a"]))
    member = np.arange(count) < 20
    plan = ShadowPlan(x, trained, [[] for _ in range(8)], np.arange(count), member, np.arange(0))
    scores = ShadowScores(plan, plain, trained, *(np.zeros((0, count)),) * 3, np.zeros(0, bool), np.zeros((8, 0)))
    found = vulnerability(scores)
    t = 3
    a, b = plain[trained[:, t], t], plain[~trained[:, t], t]
    assert found[t] == pytest.approx((a.mean() - b.mean()) / np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2))
    chosen = vulnerable(scores)
    assert chosen[memorised].all()
    assert chosen[member].sum() == chosen[~member].sum() == 10


def test_canaries_are_wrong_and_half_of_them_left_out() -> None:
    data = Split.whole(ResidentStore(torch.arange(30.0)[:, None], torch.arange(30) % 3))
    made = insert_canaries(data, 5, seed=2)
    assert (len(made.train), len(made.inserted), len(made.left_out)) == (25, 5, 5)
    for split in (made.inserted, made.left_out):
        assert bool((split.y != data.labels[split.index]).all())
    assert set(made.inserted.index.tolist()) <= set(made.train.index.tolist())
    assert not set(made.left_out.index.tolist()) & set(made.train.index.tolist())
    rest = made.train.index[~torch.isin(made.train.index, made.inserted.index)]
    assert bool((made.train.take(rest).y == data.labels[rest]).all())
    with pytest.raises(UsageError, match="fewer than half of the 30"):
        insert_canaries(data, 15)
