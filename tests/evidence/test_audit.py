"""The verdict on models whose state is known: retrained, original, hiding, over-forgotten, damaged."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import expunge
from expunge.core.errors import DataError, UsageError
from expunge.data.split import ResidentStore, Split
from expunge.evidence.equivalence import compare
from expunge.evidence.explain import REPORTED_MEANINGS
from expunge.evidence.family import (
    KINDS,
    Family,
    Quantity,
    _resolved,
    judge_family,
    measure_family,
    standardised,
)
from expunge.evidence.goals import mislabelled
from expunge.evidence.held_out import band, matching
from expunge.evidence.inputs import near_split
from expunge.evidence.verdict import Findings, Margins, decide
from expunge.metrics.base import Evaluation
from expunge.models.build import build_model

GOOD = {"retain accuracy": 0.99, "test accuracy": 0.70, "forget accuracy": 0.70, "loss attack AUC": 0.50, "mean z": 0.0,
        "mean squared z": 1.0, "mean squared z on unseen samples": 1.0, "probe confidence": 0.3}  # fmt: skip
KNOWS = {**GOOD, "forget accuracy": 1.00, "loss attack AUC": 0.80, "mean z": 2.0, "mean squared z": 6.0,
         "probe confidence": 0.9}  # fmt: skip


def verdict_of(
    changes: dict[str, float],
    original: dict[str, float] | None = None,
    spread: float = 0.004,
    count: int = 8,
    **more: Any,
) -> tuple[str, list[str]]:
    """The word about a model that is like retrained ones but for some statistics."""
    steps = [spread * (i - (count - 1) / 2) for i in range(count)]
    before = KNOWS if original is None else original
    quantities = [
        Quantity(name, {**GOOD, **changes}[name], before[name], tuple(value + step for step in steps))
        for name, value in GOOD.items()
    ]
    comparisons = judge_family(Family(quantities, []), Margins().of)
    return decide(Findings(comparisons, samples=100, references=count, **more), Margins())


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({}, "forgotten"),
        ({"forget accuracy": 0.9}, "not forgotten"),
        ({"loss attack AUC": 0.7}, "not forgotten"),
        ({"mean squared z": 3.0}, "not forgotten"),  # the mean fits, single samples do not
        ({"mean squared z": 0.2}, "forgotten"),  # fewer outliers than usual is nothing
        ({"forget accuracy": 0.3, "loss attack AUC": 0.2, "mean squared z": 3.0}, "over-forgotten"),
        ({"test accuracy": 0.5}, "damaged"),
        ({"forget accuracy": 0.9, "retain accuracy": 0.5}, "damaged"),  # first of all
        ({"retain accuracy": 0.944}, "damaged"),  # within a margin of 0.05, but far beyond what retraining shows
        ({"test accuracy": 0.9}, "not enough evidence"),  # better than retraining is no damage, but not the same
        ({"probe confidence": 0.9}, "suppressed"),
        ({"probe confidence": 0.1}, "not enough evidence"),
        ({"mean squared z on unseen samples": 9.0, "mean z": 1.0}, "suppressed"),  # outputs are altered everywhere
    ],
)
def test_words_from_numbers(changes: dict[str, float], word: str) -> None:
    found, reasons = verdict_of(changes)
    assert found == word, reasons
    assert reasons
    if word not in ("forgotten", "not enough evidence"):
        assert reasons[0].startswith(f"{word}: ")


def test_nothing_is_forgotten_where_nothing_was_asked() -> None:
    word, reasons = verdict_of({}, original=GOOD)
    assert word == "indistinguishable from the start"
    assert "no number of retrained models" in reasons[0]
    near = {**GOOD, "forget accuracy": 0.73}
    word, reasons = verdict_of({}, original=near, count=4)
    assert word == "indistinguishable from the start"
    assert "retrained models (there are 4) would be enough" in reasons[0]


def test_harm_that_was_not_undone_is_no_damage() -> None:
    """Wrong samples cost the original accuracy: a model that is as bad did not forget them, and nothing damaged it."""
    harmed = {**KNOWS, "test accuracy": 0.6}
    assert verdict_of({"test accuracy": 0.6}, original=harmed)[0] == "not forgotten"
    assert verdict_of({"test accuracy": 0.5}, original=harmed)[0] == "damaged"


def test_rare_events_and_single_samples_are_no_differences() -> None:
    """Retrained models that agree on no or one sample would otherwise make a second one different, with p = 0."""
    evaluation = Evaluation({}, {"forget": Split.whole(ResidentStore(torch.zeros(120, 1), torch.zeros(120).long()))})
    for name, values, value in (("misalignment", (0.0, 0.0, 0.0), 1 / 120), ("relearn accuracy", (0.0,) * 5, 0.01)):
        assert compare(name, value, values, 0.05).p_difference < 1e-6
        assert compare(name, value, values, 0.05, resolution=_resolved(name, values, evaluation)).p_difference > 0.3


def test_what_was_not_measured_or_is_flagged_is_never_forgotten() -> None:
    word, reasons = verdict_of({}, unmeasured=[("representation", "no head")])
    assert (word, reasons) == ("not enough evidence", ["representation could not be measured: no head."])
    word, reasons = verdict_of({}, flags=["the body is the original's."])
    assert (word, reasons[0]) == ("suppressed", "suppressed: the body is the original's.")
    word, reasons = verdict_of({"forget accuracy": 0.9}, flags=["the body is the original's."])
    assert (word, reasons[-1]) == ("not forgotten", "in the features: the body is the original's.")


def test_noisy_references_prove_nothing() -> None:
    assert verdict_of({}, spread=5.0, count=3)[0] == "indistinguishable from the start"
    assert verdict_of({}, spread=0.2, count=3)[0] == "not enough evidence"  # any loss of accuracy would have passed
    losses = {"retain accuracy": 0.92}  # three models with a spread of two points: seven lost points could be chance
    word, reasons = verdict_of(losses, spread=0.02, count=3)
    assert word == "not enough evidence"
    assert "retain accuracy may be as much as" in reasons[0]


def test_a_family_keeps_its_level_and_trusts_a_floor() -> None:
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(300):
        values = rng.normal(0, 1, (10, 6))
        quantities = [Quantity(f"s{i}", v[0], v[0], tuple(v[1:]), floor=1.0) for i, v in enumerate(values)]
        alarms += any(one.differs for one in judge_family(Family(quantities, []), lambda _: 0.1))
    assert alarms / 300 <= 0.08
    trusted, alone = (compare("s", 4.5, [0.1, -0.8, 0.9], 0.1, floor=floor) for floor in (0.9, 0.0))
    assert trusted.freedom > alone.freedom == 2
    assert trusted.p_difference < 0.01 < alone.p_difference


def test_z_of_a_retrained_model_is_exchangeable_with_its_references() -> None:
    """Leave-one-out values average to the same as those of a fresh model, with few references, too."""
    rng = np.random.default_rng(1)
    scores = rng.normal(0, 1, (4000, 4)).T * np.exp(0.5 * rng.normal(size=4000))
    fresh = np.mean([np.square(standardised(scores[0], np.delete(scores[1:], j, 0))).mean() for j in range(3)])
    own = np.mean([np.square(standardised(scores[1 + j], np.delete(scores[1:], j, 0))).mean() for j in range(3)])
    assert fresh == pytest.approx(own, rel=0.1)


def points(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two overlapping clouds with a third of random labels: there is something to memorise."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 2
    x = torch.randn(count, 8, generator=g) + y[:, None]
    noisy = torch.rand(count, generator=g) < 0.3
    return x, torch.where(noisy, 1 - y, y)


@pytest.fixture(scope="module")
def world() -> dict[str, Any]:
    data = Split.whole(ResidentStore(*points(260, 0), classes=["a", "b"]), "train")
    forget, retain = data.take(range(60), "forget"), data.take(range(60, 260), "retain")
    test = Split.whole(ResidentStore(*points(600, 1), classes=["a", "b"]), "test")
    recipe = {"epochs": 40, "lr": 0.05, "batch_size": 32, "weight_decay": 0.0}

    labels = data.labels.clone()
    labels[:60] = 1 - labels[:60]
    turned = data.with_labels(labels)  # learns the opposite of what is to be forgotten

    def trained(split: Split, seed: int) -> nn.Module:
        model = build_model("mlp", num_classes=2, input_shape=(8,), seed=seed, options={"hidden": 64})
        return expunge.train(model, split, recipe=recipe, seed=seed, device="cpu").model

    return {
        "original": trained(data, 0),
        "retrained": [trained(retain, seed) for seed in range(1, 7)],
        "fresh": trained(retain, 99),
        "pushed": trained(turned, 98),
        "splits": {"forget": forget, "retain": retain, "test": test},
    }


def verdict(world: dict[str, Any], unlearned: nn.Module, **more: Any) -> expunge.Verdict:
    given = {"retrained": world["retrained"], "resamples": 60, "device": "cpu", **world["splits"], **more}
    return expunge.audit(world["original"], unlearned, **given)


def audited(world: dict[str, Any], unlearned: nn.Module, **more: Any) -> expunge.Verdict:
    given = {"retrained": world["retrained"], "resamples": 60, "device": "cpu", **world["splits"], **more}
    return expunge.audit(world["original"], unlearned, **given)


def test_the_original_is_not_forgotten_and_a_retrained_model_is(world: dict[str, Any]) -> None:
    found = audited(world, world["original"])
    assert found.label == "not forgotten"
    assert found.basis == "retrained"
    assert "p " in found.reasons[0]
    clean = audited(world, world["fresh"])
    assert clean.label == "forgotten", str(clean)
    assert clean.unmeasured == []
    assert {KINDS[one.name] for one in clean.comparisons} == set(KINDS.values())
    assert set(clean.details["jsd"]) == {"forget", "retain", "test"}
    assert 0 < clean.details["tow"] <= 1
    few = audited(world, world["fresh"], retrained=world["retrained"][:2])
    assert few.label == "not enough evidence"
    assert "single samples could not be measured" in few.reasons[-1]


def test_a_model_that_learnt_the_opposite_is_over_forgotten(world: dict[str, Any]) -> None:
    found = audited(world, world["pushed"])  # the opposite of noisy labels costs accuracy elsewhere, too
    assert found.label in ("over-forgotten", "damaged")
    assert any(reason.startswith(("over-forgotten", "also over-forgotten")) for reason in found.reasons), str(found)
    weak = audited(world, world["pushed"], retrained=[], random=True)
    assert (weak.label, weak.basis) == ("over-forgotten", "held-out")


def test_a_broken_model_is_damaged_with_and_without_references(world: dict[str, Any]) -> None:
    broken = copy.deepcopy(world["fresh"])
    with torch.no_grad():
        for p in broken.parameters():
            p.add_(0.6 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    for retrained in (world["retrained"], []):
        assert audited(world, broken, retrained=retrained).label == "damaged"


class Table(nn.Module):
    """The answers of another model for the inputs of a table."""

    def __init__(self, model: nn.Module, x: Tensor, answers: Tensor) -> None:
        super().__init__()
        self.model, self.x, self.answers = model, x, answers

    def forward(self, x: Tensor) -> Tensor:
        z = self.model(x)
        same = (x[:, None] == self.x).all(2)
        return torch.where(same.any(1)[:, None], same.float() @ self.answers, z)


class Clipped(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).softmax(1).clamp(0.1, 0.9).log()


def test_models_that_hide_are_never_forgotten(world: dict[str, Any]) -> None:
    original, fresh, forget = (copy.deepcopy(world[name]) for name in ("original", "fresh", "original"))
    x = world["splits"]["forget"].inputs()
    head = [module for module in forget.modules() if isinstance(module, nn.Linear)][-1]
    teacher = [module for module in fresh.modules() if isinstance(module, nn.Linear)][-1]
    head.load_state_dict(teacher.state_dict())
    with torch.no_grad():
        hidden = Table(original, x, fresh(x))
    found = audited(world, hidden)
    assert found.label in ("suppressed", "not forgotten"), str(found)
    assert found.flags
    near = next(comparison for comparison in found.comparisons if comparison.name == "mean z near the samples")
    assert near.p_difference < 0.01 < 0.1 < next(c for c in found.comparisons if c.name == "mean z").p_difference
    for cheat in (Clipped(original), forget):
        assert audited(world, cheat).label not in ("forgotten", "indistinguishable from the start")


def test_an_erased_class_without_unseen_samples_is_not_forgotten(world: dict[str, Any]) -> None:
    splits = world["splits"]
    data = splits["forget"].store
    one = Split.whole(data, "train")
    forget = one.take(torch.arange(260)[one.y == 1][:60], "forget")
    retain = one.take(torch.arange(260)[~torch.isin(torch.arange(260), forget.index)], "retain")
    test = splits["test"].take(splits["test"].index[splits["test"].y == 0])
    erased = copy.deepcopy(world["original"])
    with torch.no_grad():
        head = [module for module in erased.modules() if isinstance(module, nn.Linear)][-1]
        head.weight[1] = 0
        head.bias[1] = -10
    found = audited(world, erased, forget=forget, retain=retain, test=test)
    assert found.label != "forgotten"
    assert any("no unseen sample" in why or "share a class" in why for _, why in found.unmeasured)


def test_references_that_are_none_are_refused(world: dict[str, Any]) -> None:
    same = [copy.deepcopy(world["original"]) for _ in range(3)]
    for references, phrase in (
        (same, "give the same outputs: they are the same model"),
        ([*world["retrained"], same[0]], "the same outputs as the original model"),
        ([*world["retrained"], world["fresh"]], "the same outputs as the unlearned model"),
    ):
        with pytest.raises(UsageError, match=phrase):
            audited(world, world["fresh"], retrained=references)


class Broken(nn.Module):
    def __init__(self, model: nn.Module, kind: str) -> None:
        super().__init__()
        self.model, self.kind = model, kind

    def forward(self, x: Tensor) -> Tensor:
        z = self.model(x)
        return z.softmax(1) if self.kind == "probabilities" else torch.where(x[:, :1] > 2.5, torch.nan, z)


def test_outputs_that_cannot_be_judged_are_refused(world: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="the outputs of the unlearned model are probabilities"):
        audited(world, Broken(world["fresh"], "probabilities"))
    with pytest.raises(UsageError, match=r"not finite .* on \d+ of 60 forget samples and \d+ of 200 retain samples"):
        audited(world, Broken(world["fresh"], "nan"))
    splits = world["splits"]
    with pytest.raises(DataError, match="in both the retain and the test set"):
        audited(world, world["fresh"], test=splits["retain"])


class Difference(nn.Module):
    """One logit for class 1."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        z = self.model(x)
        return z[:, 1:] - z[:, :1]


def test_one_logit_is_a_binary_classifier(world: dict[str, Any]) -> None:
    models = [Difference(model) for model in (world["fresh"], *world["retrained"][:3])]
    single = expunge.audit(
        Difference(world["original"]), models[0], retrained=models[1:], device="cpu", **world["splits"]
    )
    double = audited(world, world["fresh"], retrained=world["retrained"][:3])
    numbers = [found.details["statistics"]["unlearned"] for found in (single, double)]
    for name in ("forget accuracy", "loss attack AUC", "mean z"):
        assert numbers[0][name] == pytest.approx(numbers[1][name], abs=1e-6)


def test_tables_hold_every_attack_of_every_model(world: dict[str, Any]) -> None:
    found = audited(world, world["fresh"])
    frame = found.frame()
    assert set(frame["model"]) == {"original", "unlearned", *(f"retrained {i}" for i in range(1, 7))}
    assert "gradient norm" in set(frame["signal"])
    assert frame[frame["model"] == "original"].set_index("signal").loc["loss", "auc"] > 0.6
    tests = found.tests()
    assert set(tests["name"]) == set(KINDS) - {"concept accuracy"}  # of the goal `unlearn`
    assert tests.set_index("name").loc["forget accuracy", "original"] > 0.75
    assert str(found).startswith(found.label)
    assert len(repr(found).splitlines()) <= 10
    assert found.record()["tests"][0]["name"] == "retain accuracy"


def test_an_exact_method_forgets_by_construction(world: dict[str, Any]) -> None:
    splits = world["splits"]
    recipe = {"epochs": 40, "lr": 0.05, "batch_size": 32, "weight_decay": 0.0}
    made = expunge.unlearn(
        world["original"], forget=splits["forget"], retain=splits["retain"], method="retrain", recipe=recipe,
        seed=5, device="cpu",
    )  # fmt: skip
    found = expunge.audit(world["original"], made, device="cpu", **splits)
    assert found.label == "forgotten by construction"
    assert "The audit saw:" in found.reasons[0]
    other = {**splits, "forget": splits["forget"].take(range(30)), "retain": splits["retain"]}
    assert expunge.audit(world["original"], made, device="cpu", **other).label != "forgotten by construction"


def test_what_an_audit_cannot_do_is_said(world: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="one retrained model has no spread"):
        audited(world, world["fresh"], retrained=world["retrained"][:1])
    with pytest.raises(UsageError, match=r"`auc` should be less than 0\.5"):
        audited(world, world["fresh"], margins={"auc": 0.7})
    with pytest.raises(UsageError, match="unknown goal `forget`"):
        audited(world, world["fresh"], goal="forget")
    splits = world["splits"]
    few = audited(world, world["fresh"], retrained=[], forget=splits["forget"].take([0, 1]))
    assert few.label == "not enough evidence"


def test_without_references_the_basis_must_be_matched(world: dict[str, Any]) -> None:
    """Wrong labels: their samples do not agree with their neighbours as unseen ones do."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(900, 4, generator=g)
    y = (x[:, 0] > 0).long()
    wrong = torch.where(torch.arange(900) < 100, 1 - y, y)

    def splits(labels: Tensor) -> dict[str, Split]:
        data = Split.whole(ResidentStore(x, labels, classes=["a", "b"]))
        parts = {"forget": range(100), "retain": range(100, 500), "test": range(500, 900)}
        return {name: data.take(list(rows), name) for name, rows in parts.items()}

    clean = matching(splits(y), 0)
    assert (clean.holds, clean.labels) == (True, True)
    noise = matching(splits(torch.arange(900) % 2), 0)  # neighbours tell nothing: wrong labels could not show
    assert (noise.holds, noise.labels) == (True, False)
    refused = matching(splits(wrong), 0)
    assert not refused.holds
    assert "agree in label" in refused.reason


def test_unseen_samples_get_the_confusion_of_the_request() -> None:
    y = torch.tensor([0, 0, 0, 0, 1, 1] * 50)
    data = Split.whole(ResidentStore(torch.zeros(300, 1), y, classes=list("abc")))
    changed = y.clone()
    changed[:150] = torch.where(y[:150] == 0, 2, 1)
    forget = data.with_labels(changed).take(range(150))
    found = mislabelled(data.take(range(150, 300)), forget, 0)
    assert set(found.y[y[150:] == 0].tolist()) == {2}
    assert set(found.y[y[150:] == 1].tolist()) == {1}
    same = data.take(range(150, 300))
    assert mislabelled(same, data.take(range(150)), 0) is same


def test_the_band_holds_for_random_requests() -> None:
    rng = np.random.default_rng(2)
    outside = sum(abs(rng.binomial(50, 0.7) / 50 - rng.binomial(200, 0.7) / 200) > band(50, 200) for _ in range(500))
    assert outside / 500 <= 0.05
    assert band(50, 10**9) == pytest.approx(np.sqrt(np.log(80) / 100), rel=1e-3)


def test_near_inputs_are_mixed_of_the_samples_themselves() -> None:
    x = torch.arange(60.0).reshape(20, 3)
    split = Split.whole(ResidentStore(x, torch.zeros(20, dtype=torch.long), classes=["a"]))
    found = near_split(split, 0)
    assert found is not None
    mixed = found.inputs()
    assert mixed.shape == x.shape
    assert 0 < float((mixed != x).double().mean()) < 0.3
    assert all(bool(torch.isin(mixed[:, column], x[:, column]).all()) for column in range(3))
    assert near_split(split.take([0]), 0) is None


def test_an_attack_by_z_is_the_likelihood_ratio_of_offline_lira() -> None:
    """The calibrated attack by a double loop over samples, references and unseen samples."""
    torch.manual_seed(0)
    models = {name: nn.Linear(3, 2) for name in ("original", "unlearned", "r1", "r2", "r3")}
    data = Split.whole(ResidentStore(torch.randn(40, 3), torch.arange(40) % 2, classes=["a", "b"]))
    splits = {"forget": data.take(range(10)), "test": data.take(range(10, 40))}
    evaluation = Evaluation(models, splits)
    family = measure_family(evaluation, ["r1", "r2", "r3"])
    found = next(one for one in family.quantities if one.name == "calibrated attack AUC")

    def z(model: str, split: str, others: Sequence[str]) -> Any:
        phi = {}
        for name in (model, *others):
            logits = evaluation.logits(name, split).double()
            p = logits.softmax(1)[torch.arange(len(logits)), splits[split].y]
            phi[name] = (p / (1 - p)).log().numpy()
        rest = np.stack([phi[name] for name in others])
        variance = (rest.var(0, ddof=1) + 4 * rest.var(0, ddof=1).mean()) / 5
        return (phi[model] - rest.mean(0)) / np.sqrt(variance * 1.5)

    expected = []
    for pair in (["r2", "r3"], ["r1", "r3"], ["r1", "r2"]):
        mine, unseen = z("unlearned", "forget", pair), z("unlearned", "test", pair)
        expected.append(np.mean(mine[:, None] > unseen))
    assert found.value == pytest.approx(np.mean(expected))
    one = replace(found, name="x")
    assert len(one.retrained) == 3


def test_reported_numbers_tell_the_original_and_not_a_retrained_model(world: dict[str, Any]) -> None:
    kept, gone = (audited(world, world[name], extended=True) for name in ("original", "fresh"))
    numbers = {number.name: number for number in kept.reported}
    assert set(numbers) == set(REPORTED_MEANINGS) - {"worst group"} - {what for what, _ in kept.not_reported}
    assert {what for what, _ in kept.not_reported} <= {"IDI"}
    for name in ("RMIA AUC", "IAM", "worst-off tenth", "quantile regression AUC"):
        number = numbers[name]
        assert number.unlearned == number.original > max(number.retrained), name
    for number in gone.reported:
        if number.name not in ("IDI", "SDE", "quantile regression AUC"):
            width = max(number.retrained) - min(number.retrained)
            low, high = min(number.retrained) - width, max(number.retrained) + width
            assert low <= number.unlearned <= high, number
    assert numbers["exposure of retained samples"].unlearned == 0
    assert {"unlearned: RMIA, retrained models", "original: quantile regression"} <= set(kept.per_sample)
    record = kept.record()
    assert [row["name"] for row in record["reported"]] == [number.name for number in kept.reported]
    quick = audited(world, world["fresh"], retrained=[])
    assert [number.name for number in quick.reported] == ["exposure of retained samples"]
    assert ("IAM", "it needs 2 retrained models or more, and there are 0") in quick.not_reported
