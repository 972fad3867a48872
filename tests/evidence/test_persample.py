"""Per-sample attacks on Gaussian scores whose AUC is known, and the plans and models behind them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import roc_auc_score
from torch import nn

import expunge
from expunge.core.errors import UsageError
from expunge.core.seeds import numpy_generator
from expunge.data.split import ResidentStore, Split
from expunge.evidence import shadows as shadows_module
from expunge.evidence.distances import forgetting_score, sample_epsilon
from expunge.evidence.persample import attack_plain, attack_unlearned, lira, rmia
from expunge.evidence.shadows import ShadowScores, half_in, make_plan, shadow_scores
from expunge.methods.base import make_method
from expunge.models.build import build_model
from expunge.training.recipe import Recipe

SHIFT = 1.5  # members' scores are so many deviations higher, around a difficulty of each sample that hides it


def gaussians(
    samples: int = 1000, shadows: int = 128, shift: float = SHIFT, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(phi of the audited model, member, shadow scores, inside)."""
    rng = np.random.default_rng(seed)
    difficulty = 20 * rng.standard_normal(samples)
    member = np.arange(samples) < samples // 2
    inside = half_in(samples, shadows, rng)
    scores = difficulty + shift * inside + rng.standard_normal((shadows, samples))
    return difficulty + shift * member + rng.standard_normal(samples), member, scores, inside


def plan_of(member: np.ndarray) -> Any:
    """As much of a plan as the attacks read."""
    return SimpleNamespace(member=member)


def test_lira_reaches_the_auc_of_the_best_attack() -> None:
    phi, member, scores, inside = gaussians()
    ratio, z = lira(phi, scores, inside, ~inside)
    best = norm.cdf(SHIFT / np.sqrt(2))  # of two unit Gaussians at distance SHIFT
    assert roc_auc_score(member, ratio) == pytest.approx(best, abs=0.02)
    assert roc_auc_score(member, phi) < 0.6  # a population attack sees difficulty alone
    assert np.median(z[member]) == pytest.approx(SHIFT, abs=0.15)


@pytest.mark.parametrize("variance", ["per-sample", "global"])
@pytest.mark.parametrize("centre", ["mean", "median"])
def test_the_ratio_is_that_of_two_densities(variance: Any, centre: Any) -> None:
    phi, _, scores, inside = gaussians(samples=30, shadows=20)
    ratio, _ = lira(phi, scores, inside, ~inside, variance=variance, centre=centre)
    middle = {"mean": np.mean, "median": np.median}[centre]
    variances = [[np.var(scores[side[:, t], t], ddof=1) for t in range(30)] for side in (inside, ~inside)]
    for t in range(30):
        found = []
        for side, known in zip((inside, ~inside), variances, strict=True):
            spread = np.sqrt(known[t] if variance == "per-sample" else np.mean(known))
            found.append(norm.logpdf(phi[t], middle(scores[side[:, t], t]), spread))
        assert ratio[t] == pytest.approx(found[0] - found[1], rel=1e-9)


def test_unequal_variances_have_each_their_own() -> None:
    rng = np.random.default_rng(1)
    inside = half_in(1, 400, rng)
    scores = np.where(inside, 3 * rng.standard_normal((400, 1)), 0.1 * rng.standard_normal((400, 1)))
    ratio, z = lira(np.array([1.0]), scores, inside, ~inside, variance="per-sample")
    assert z[0] == pytest.approx(10, rel=0.2)  # in deviations of OUT, not of IN
    assert ratio[0] > 20


def test_a_sample_with_too_few_shadows_is_no_evidence() -> None:
    phi, _, scores, inside = gaussians(samples=5, shadows=8)
    inside[:, 2] = False
    ratio, _ = lira(phi, scores, inside, ~inside)
    assert np.isnan(ratio).tolist() == [False, False, True, False, False]


def test_equal_models_give_nothing_away() -> None:
    phi, member, scores, inside = gaussians(shift=0.0)
    many = ShadowScores(plan_of(member), scores, inside, scores, inside, ~inside, np.ones(128, bool), scores)
    found = attack_unlearned(phi, many)
    assert found.auc.low < 0.5 < found.auc.high
    assert found.epsilon < 0.5 < found.largest
    assert found.at_zero == pytest.approx(0.5, abs=0.06)


def test_what_was_remembered_is_found_with_its_epsilon() -> None:
    phi, member, scores, inside = gaussians(shift=4.0)
    many = ShadowScores(plan_of(member), scores, inside, scores, inside, ~inside, np.ones(128, bool), scores)
    found = attack_unlearned(phi, many)
    assert found.auc.value > 0.99
    assert found.direction == pytest.approx(4, abs=0.3)
    assert 2 < found.epsilon <= found.largest
    assert found.balanced_accuracy == pytest.approx(norm.cdf(2), abs=0.02)
    fpr, tpr = found.roc()
    assert np.trapezoid(tpr, fpr) == pytest.approx(found.auc.value, abs=1e-9)


def test_rmia_by_hand() -> None:
    def logit(p: float) -> float:
        return float(np.log(p / (1 - p)))

    phi = np.array([logit(0.9)])
    scores = np.array([[logit(0.5)], [logit(0.99)]])
    outside = np.array([[True], [False]])  # the second saw it, and does not count
    unseen = np.array([logit(0.6), logit(0.2)])
    shadow_unseen = np.array([[logit(0.6), logit(0.8)], [logit(0.6), logit(0.8)]])
    # a = 1: p_0 is the mean over OUT. Ratios: 0.9 / 0.5 = 1.8 against 1 and 0.25.
    for gamma, expected in ((1.0, 1.0), (2.0, 0.5), (8.0, 0.0)):
        assert rmia(phi, scores, outside, unseen, shadow_unseen, gamma=gamma, a=1.0)[0] == expected


def test_plain_attacks_find_members() -> None:
    phi, member, scores, inside = gaussians(samples=400, shadows=64)
    rng = np.random.default_rng(2)
    unseen = 20 * rng.standard_normal(300)
    many = ShadowScores(
        plan_of(member), scores, inside, scores[:0], inside[:0], inside[:0], np.zeros(0, bool),
        unseen + rng.standard_normal((64, 300)),
    )  # fmt: skip
    found = {one.name: one for one in attack_plain(phi, unseen + rng.standard_normal(300), many)}
    assert found["LiRA"].auc.low > 0.75
    assert found["RMIA"].auc.low > 0.5


def test_every_target_is_in_for_half_of_the_shadows() -> None:
    inside = half_in(50, 16, np.random.default_rng(0))
    assert (inside.sum(0) == 8).all()
    assert (inside.sum(1) == 25).all()
    odd = half_in(7, 4, np.random.default_rng(0))
    assert (odd.sum(0) == 2).all()
    assert sorted(odd.sum(1)) == [3, 3, 4, 4]


def test_the_epsilon_of_one_sample() -> None:
    assert sample_epsilon(np.array([0.0, 1.0]), np.array([5.0, 6.0])) == np.inf
    same = np.arange(10.0)
    assert sample_epsilon(same, same) == pytest.approx(0.0, abs=0.2)
    # Below 0.5: 9 of 10 unlearned, 1 of 10 retrained; every other threshold separates less, or has a zero.
    mine, theirs = np.array([0.0] * 9 + [1.0]), np.array([0.0] + [1.0] * 9)
    assert sample_epsilon(mine, theirs, delta=0.0) == pytest.approx(np.log(9))


def test_the_forgetting_score_of_equal_models_is_what_chance_gives() -> None:
    rng = np.random.default_rng(3)
    equal = [[rng.standard_normal(64) for _ in range(100)] for _ in range(2)]
    found = forgetting_score(*equal, numpy_generator(0, "test"))
    assert found.score == pytest.approx(found.chance, rel=0.15)
    apart = forgetting_score(equal[0], [x + 10 for x in equal[1]], numpy_generator(0, "test"))
    assert np.isinf(apart.epsilon).all()
    assert apart.score == pytest.approx(2 / 2**13)
    assert found.score > 100 * apart.score


# Real models: digits that are hard to learn, so that membership shows.


def digits() -> tuple[Split, Split, Split]:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(x))[:500]
    labels = np.where(rng.random(500) < 0.4, rng.integers(0, 10, 500), y[order])  # noise is what is memorised
    samples = torch.tensor(x[order] / 16, dtype=torch.float32)
    store = ResidentStore(samples, torch.tensor(labels, dtype=torch.long), classes=[str(i) for i in range(10)])
    whole = Split.whole(store)
    parts = ((0, 40, "forget"), (40, 200, "retain"), (200, 500, "test"))
    forget, retain, test = (whole.take(torch.arange(low, high), name) for low, high, name in parts)
    return forget, retain, test


def net() -> nn.Module:
    return build_model("mlp", num_classes=10, input_shape=(64,), seed=0, options={})


FAST = Recipe(epochs=30, lr=0.01, batch_size=32, optimizer="adam")


def test_the_plan_is_disjoint_and_balanced() -> None:
    forget, retain, test = digits()
    plan = make_plan(forget, retain, test, 8, seed=1)
    assert plan.member.sum() == len(plan.member) / 2
    assert not set(plan.targets) & set(plan.population)
    assert plan.train[:, plan.population].sum() == 0
    assert (plan.train[:, plan.targets].sum(0) == 4).all()
    staying = np.arange(len(forget), len(forget) + len(retain))
    assert plan.train[:, staying].all()
    for shadow, (gone,) in enumerate(plan.forget):
        assert set(gone) == set(np.flatnonzero(plan.train[shadow])) & set(plan.targets)
    labels = plan.pool.y.numpy()[plan.targets]
    for c in range(10):
        assert (labels[plan.member] == c).sum() == (labels[~plan.member] == c).sum()


def test_halves_forget_disjoint_requests() -> None:
    forget, retain, test = digits()
    forget = forget.take(forget.index[:10])
    plan = make_plan(forget, retain, test, 4, seed=1, design="halves", requests=3)
    for shadow, gone in enumerate(plan.forget):
        assert [len(part) for part in gone] == [10, 10, 10]
        assert len(np.unique(np.concatenate(gone))) == 30
        assert plan.train[shadow][np.concatenate(gone)].all()
    with pytest.raises(UsageError, match="too few"):
        make_plan(forget, retain, test, 4, design="halves", requests=500)


def test_refused_plans() -> None:
    forget, retain, test = digits()
    with pytest.raises(UsageError, match="even"):
        make_plan(forget, retain, test, 5)
    other = forget.take(forget.index[forget.y == 3])
    with pytest.raises(UsageError, match="no test sample"):
        make_plan(other, retain, test.take(test.index[test.y == 1]), 4)


def test_scores_are_kept_and_never_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget, retain, test = digits()
    plan = make_plan(forget, retain, test, 4, seed=1)
    quick, method = Recipe(epochs=2, lr=0.01, batch_size=32, optimizer="adam"), make_method("finetune", epochs=1)

    def run(**changed: Any) -> ShadowScores:
        given = {"recipe": quick, "method": method, "device": "cpu", "cache": tmp_path, **changed}
        return shadow_scores(net(), plan, **given)

    first = run()
    weights = sorted((tmp_path / "rows").glob("*-weights.npz"))
    assert len(weights) == 4
    for broken in (weights[0], weights[0].with_name(weights[0].name.replace("-weights", ""))):
        broken.write_bytes(b"cut off")  # as a full disk would leave it
    calls: list[int] = []
    real = shadows_module.train
    monkeypatch.setattr(shadows_module, "train", lambda *a, **k: (calls.append(1), real(*a, **k))[1])
    again = run()
    assert len(calls) == 1  # the damaged one alone
    np.testing.assert_array_equal(first.unlearned, again.unlearned)
    np.testing.assert_array_equal(first.plain, again.plain)
    other = run(method=make_method("finetune", epochs=2))
    assert len(calls) == 1  # the originals are the same
    assert np.abs(other.unlearned - first.unlearned).max() > 0
    run(recipe=Recipe(epochs=3, lr=0.01, batch_size=32, optimizer="adam"))
    assert len(calls) == 5
    run()
    assert len(calls) == 5


def left_alone(model: nn.Module, forget: Split, retain: Split) -> nn.Module:
    return model


def pulled_to_zero(model: nn.Module, forget: Split, retain: Split) -> nn.Module:
    """A method that no catalogue knows: it answers nothing in particular any more, forgotten or not."""
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.5)
    return model


def test_any_function_is_attacked_with_the_same_shadow_originals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget, retain, test = digits()
    plan = make_plan(forget, retain, test, 4, seed=1)
    quick = Recipe(epochs=2, lr=0.01, batch_size=32, optimizer="adam")
    calls: list[int] = []
    real = shadows_module.train
    monkeypatch.setattr(shadows_module, "train", lambda *a, **k: (calls.append(1), real(*a, **k))[1])

    def run(method: Any, **changed: Any) -> ShadowScores:
        given: dict[str, Any] = {"recipe": quick, "method": method, "device": "cpu", "cache": tmp_path, **changed}
        return shadow_scores(net(), plan, **given)

    nothing = run(make_method("original"))
    assert len(calls) == 4
    pulled = run(pulled_to_zero)
    assert len(calls) == 4  # no original is trained a second time
    np.testing.assert_array_equal(nothing.plain, pulled.plain)
    np.testing.assert_array_equal(nothing.unlearned, nothing.plain)
    assert np.abs(pulled.unlearned - pulled.plain).max() > 0.1
    asked: list[tuple[int, int]] = []

    def closure(model: nn.Module, forget: Split, retain: Split) -> nn.Module:
        asked.append((len(forget), len(retain)))
        return model

    for _ in range(2):  # what a closure does cannot be told, so its scores are not kept
        np.testing.assert_array_equal(run(closure).unlearned, nothing.plain)
    assert len(asked) == 8
    assert set(asked) == {(len(plan.targets) // 2, len(retain))}
    with pytest.raises(UsageError, match="pass jobs=1"):
        run(closure, jobs=2)
    with pytest.raises(UsageError, match="returned nothing"):
        run(lambda model, forget, retain: None)


def test_jobs_change_nothing(tmp_path: Path) -> None:
    forget, retain, test = digits()
    plan = make_plan(forget, retain, test, 4, seed=1)
    quick = Recipe(epochs=2, lr=0.01, batch_size=32)
    one, two = (shadow_scores(net(), plan, recipe=quick, device="cpu", jobs=jobs) for jobs in (1, 2))
    np.testing.assert_array_equal(one.plain, two.plain)
    np.testing.assert_array_equal(one.population, two.population)


def test_stacks_change_nothing_but_rounding() -> None:
    forget, retain, test = digits()
    plan = make_plan(forget, retain, test, 4, seed=1)
    given: dict[str, Any] = {"recipe": Recipe(epochs=3, lr=0.01, batch_size=32), "device": "cpu"}
    alone, stacked = (shadow_scores(net(), plan, stack=stack, **given) for stack in (1, 4))
    np.testing.assert_allclose(stacked.plain, alone.plain, atol=1e-3)
    assert np.abs(stacked.plain[0] - stacked.plain[1]).max() > 0.1
    with pytest.raises(UsageError, match="at least 1"):
        shadow_scores(net(), plan, stack=0, **given)


def test_an_audit_with_shadows_tells_the_original_from_a_retrained_model(tmp_path: Path) -> None:
    forget, retain, test = digits()
    data = {"forget": forget, "retain": retain, "test": test}
    everything = retain.take(torch.cat([forget.index, retain.index]))
    original = expunge.train(net(), everything, recipe=FAST, seed=7, device="cpu")
    common: dict[str, Any] = {"recipe": FAST, "seed": 11, "device": "cpu"}
    nothing = expunge.unlearn(original.model, forget=forget, retain=retain, method="original", **common)
    exact = expunge.unlearn(original.model, forget=forget, retain=retain, method="retrain", **common)
    given: dict[str, Any] = {**data, "shadows": 16, "device": "cpu", "cache": tmp_path, "resamples": 100}
    kept = expunge.audit(original, nothing, **given)
    gone = expunge.audit(original, exact, **given)
    assert kept.label == "not forgotten"
    assert kept.per_sample["original: LiRA"].auc.low > 0.6
    assert kept.per_sample["unlearned: U-LiRA"].auc.low > 0.6
    found = gone.per_sample["unlearned: U-LiRA"].auc
    assert found.low < 0.5 < found.high
    assert gone.details["shadows"]["klom"]["mean"] < kept.details["shadows"]["klom"]["mean"]
    assert {"unlearned: U-LiRA, vulnerable half", "unlearned: U-LiRA, protected half"} <= set(kept.per_sample)
    halves = [kept.per_sample[f"unlearned: U-LiRA, {part} half"].auc.value for part in ("vulnerable", "protected")]
    assert halves[0] > halves[1]
    told = expunge.audit(original, nothing, recipe=FAST, method=left_alone, **given)
    assert told.details["shadows"]["method"] == "left_alone"
    assert told.per_sample["unlearned: U-LiRA"].auc.value == kept.per_sample["unlearned: U-LiRA"].auc.value
    rows = gone.frame()
    assert {"U-LiRA", "LiRA", "RMIA"} <= set(rows["signal"])


def test_an_audit_needs_to_know_the_method() -> None:
    forget, retain, test = digits()
    with pytest.raises(UsageError, match=r"pass method=\.\.\. and recipe=\.\.\."):
        expunge.audit(net(), net(), forget=forget, retain=retain, test=test, shadows=4, device="cpu")
