"""The verdict on models whose state is known: retrained, original, over-forgotten, damaged."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import expunge
from expunge.core.errors import UsageError
from expunge.data.split import ResidentStore, Split
from expunge.evidence.rates import Interval, Separation
from expunge.evidence.verdict import Margins, against_held_out, against_retrained
from expunge.models.build import build_model

GOOD = {"forget accuracy": 0.70, "loss attack AUC": 0.50, "retain accuracy": 0.99, "test accuracy": 0.70}
KNOWS = {"forget accuracy": 1.00, "loss attack AUC": 0.80, "retain accuracy": 0.99, "test accuracy": 0.70}


def retrained(count: int = 8, spread: float = 0.004) -> list[dict[str, float]]:
    steps = [spread * (i - (count - 1) / 2) for i in range(count)]
    return [{name: value + step for name, value in GOOD.items()} for step in steps]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({}, "forgotten"),
        ({"forget accuracy": 0.9}, "not forgotten"),
        ({"loss attack AUC": 0.7}, "not forgotten"),
        ({"forget accuracy": 0.3, "loss attack AUC": 0.2}, "over-forgotten"),
        ({"test accuracy": 0.5}, "damaged"),
        ({"test accuracy": 0.9}, "not enough evidence"),  # better than retraining is no damage, but not the same
        ({"forget accuracy": 0.9, "retain accuracy": 0.5}, "not forgotten"),
    ],
)
def test_words_from_numbers(changes: dict[str, float], word: str) -> None:
    found, reasons, comparisons = against_retrained(KNOWS, {**GOOD, **changes}, retrained(), Margins())
    assert found == word
    assert reasons
    assert len(comparisons) == 4


def test_noisy_references_prove_nothing() -> None:
    assert against_retrained(KNOWS, GOOD, retrained(3, spread=0.2), Margins())[0] == "not enough evidence"


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (0.48, 0.53, "forgotten (weak)"),
        (0.6, 0.7, "not forgotten"),
        (0.1, 0.2, "over-forgotten"),
        (0.4, 0.7, "not enough evidence"),
    ],
)
def test_words_without_retrained_models(low: float, high: float, word: str) -> None:
    attack = Separation(Interval((low + high) / 2, low, high), {})
    assert against_held_out(KNOWS, GOOD, attack, Margins())[0] == word
    damaged = against_held_out(KNOWS, {**GOOD, "test accuracy": 0.5}, attack, Margins())
    assert any("test accuracy fell" in reason for reason in damaged[1])


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


def test_the_original_is_not_forgotten_and_a_retrained_model_is_not_accused(world: dict[str, Any]) -> None:
    found = verdict(world, world["original"])
    assert found.word == "not forgotten"
    assert found.basis == "retrained"
    assert "p " in found.reasons[0]
    clean = verdict(world, world["fresh"], margins={"accuracy": 0.15, "auc": 0.15})
    assert clean.word in ("forgotten", "not enough evidence")
    assert set(clean.details["jsd"]) == {"forget", "retain", "test"}
    assert 0 < clean.details["tow"] <= 1


def test_a_model_that_hides_its_samples_is_over_forgotten(world: dict[str, Any]) -> None:
    pushed = world["pushed"]
    found = verdict(world, pushed)
    assert found.word == "over-forgotten", str(found)
    weak = verdict(world, pushed, retrained=[])
    assert (weak.word, weak.basis) == ("over-forgotten", "held-out")


def test_a_broken_model_is_damaged(world: dict[str, Any]) -> None:
    broken = copy.deepcopy(world["fresh"])
    with torch.no_grad():
        for p in broken.parameters():
            p.add_(0.6 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    assert any(reason.startswith("damaged") for reason in verdict(world, broken).reasons)


def test_tables_hold_every_attack_of_every_model(world: dict[str, Any]) -> None:
    found = verdict(world, world["fresh"])
    frame = found.frame()
    assert set(frame["model"]) == {"original", "unlearned", *(f"retrained {i}" for i in range(1, 7))}
    assert "gradient norm" in set(frame["signal"])
    assert frame[frame["model"] == "original"].set_index("signal").loc["loss", "auc"] > 0.6
    assert list(found.tests()["name"]) == ["forget accuracy", "loss attack AUC", "retain accuracy", "test accuracy"]
    assert str(found).startswith(found.word)


def test_what_an_audit_cannot_do_is_said(world: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="one retrained model has no spread"):
        verdict(world, world["fresh"], retrained=world["retrained"][:1])
    with pytest.raises(UsageError, match=r"`auc` should be less than 0\.5"):
        verdict(world, world["fresh"], margins={"auc": 0.7})
    splits = world["splits"]
    few = verdict(world, world["fresh"], retrained=[], forget=splits["forget"].take([0, 1]))
    assert few.word == "not enough evidence"
