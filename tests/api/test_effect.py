"""Effects of unlearning are named rightly, from held-out samples alone."""

from __future__ import annotations

import json
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import expunge
from expunge.api.effect import Effect, looks_like, measure_effect
from expunge.core.errors import EffectWarning
from expunge.data.convert import as_split
from expunge.data.split import Split
from expunge.testing.toys import ToyNet

CLASSES, WIDTH = 4, 12


class Recall(nn.Module):
    """Answers by a line, and by heart for the rows that are stored: how much so is one number per row."""

    def __init__(self, rows: Tensor, labels: Tensor, strength: Tensor) -> None:
        super().__init__()
        self.line = nn.Linear(WIDTH, CLASSES)
        with torch.no_grad():
            self.line.weight.copy_(CENTRES)
            self.line.bias.copy_(-0.5 * CENTRES.square().sum(1))
        self.register_buffer("rows", rows)
        self.register_buffer("bonus", strength[:, None] * nn.functional.one_hot(labels, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        known = torch.cdist(x, self.rows) < 1e-4
        return self.line(x) + known.float() @ self.bonus


CENTRES = 1.1 * torch.eye(CLASSES, WIDTH)


def draw(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    return CENTRES[labels] + torch.randn(count, WIDTH, generator=generator) * 0.7, labels


def world(count: int = 120, *, wrong: bool = False) -> dict[str, Any]:
    """Splits, and models that know the forget set by heart (`before`) or by so much as asked (`after(strength)`)."""
    x, y = draw(600, 0)
    called = (y[:count] + 1) % CLASSES if wrong else y[:count]
    everything, labels = x, torch.cat([called, y[count:]])

    def model(forget: float, rest: float = 6.0) -> Recall:
        strength = torch.full((600,), rest)
        strength[:count] = forget
        return Recall(everything, labels, strength)

    return {
        "forget": as_split((x[:count], called), name="forget", num_classes=CLASSES),
        "retain": as_split((x[count:], y[count:]), name="retain", num_classes=CLASSES),
        "held_out": as_split(draw(400, 1), name="validation", num_classes=CLASSES),
        "model": model,
    }


def effect(at: dict[str, Any], after: nn.Module, **more: Any) -> Effect:
    splits = {name: at[name] for name in ("forget", "retain", "held_out")}
    return measure_effect(at["model"](6.0), after, **{**splits, **more})


@pytest.mark.parametrize(
    ("strength", "label"),
    [(6.0, "nothing"), (5.5, "nothing"), (1.2, "partial"), (0.0, "plausible"), (-4.0, "over-forgotten")],
)
@pytest.mark.parametrize("count", [120, 40])
def test_a_memory_that_fades_is_named(strength: float, label: str, count: int) -> None:
    at = world(count)
    found = effect(at, at["model"](strength))
    assert found.label == label, str(found)
    assert found.sentence.startswith(f"{label}: ")


def test_twenty_samples_left_as_they_were_are_nothing_and_as_unseen_are_plausible() -> None:
    at = world(20)
    assert effect(at, at["model"](6.0)).label == "nothing"
    assert effect(at, at["model"](0.0)).label == "plausible"


def test_damage_outweighs_forgetting_and_only_counts_on_unseen_samples() -> None:
    at = world()
    ruined = at["model"](0.0)
    with torch.no_grad():
        ruined.line.weight[0] = 0.0
    assert effect(at, ruined).label == "damaged"
    loose = effect(at, at["model"](0.0, rest=0.0))
    assert loose.label == "plausible"
    assert loose.notes[0].startswith("The retained samples are fitted less (")


def test_wrong_labels_are_held_against_mislabelled_samples() -> None:
    at = world(wrong=True)
    found = effect(at, at["model"](0.0))
    assert found.label == "plausible", str(found)
    assert "mislabelled alike" in found.compared
    assert found.numbers["reference_accuracy_after"] < 0.2
    assert effect(at, at["model"](6.0)).label == "nothing"
    # Without that, honest answers on them would look like far too many mistakes.
    assert effect(at, at["model"](0.0), wrong_labels=False).label == "over-forgotten"


def test_the_first_layer_tells_wrong_labels_from_right_ones() -> None:
    for wrong in (False, True):
        at = world(wrong=wrong)
        points = [at["model"](6.0).line(at[name].inputs()).detach() for name in ("forget", "held_out")]
        classes, agreement, usual = looks_like(points[0], at["forget"].y, points[1], at["held_out"].y)
        assert usual > 0.6
        assert (agreement < 0.5 * usual) == wrong
        assert not bool((classes == at["forget"].y).any())
        if wrong:
            assert float((classes == (at["forget"].y - 1) % CLASSES).double().mean()) > 0.6


def whole_class(at: dict[str, Any]) -> dict[str, Any]:
    forget, retain = at["forget"], at["retain"]
    return {
        "forget": forget.take(forget.index[forget.y == 1]),
        "retain": retain.take(retain.index[retain.y != 1]),
    }


def test_a_class_that_goes_whole_has_nothing_to_be_right_about() -> None:
    at = world()
    splits = whole_class(at)
    gone = at["model"](6.0)
    with torch.no_grad():
        gone.bonus.zero_()
        gone.line.bias[1] -= 12.0
    assert effect(at, at["model"](5.8), **splits).label == "nothing"
    found = effect(at, gone, **splits)
    assert found.label == "plausible", str(found)
    assert found.numbers["reference_accuracy_after"] == 0.0
    absent = at["held_out"].take(at["held_out"].index[at["held_out"].y != 1])
    without = effect(at, gone, **splits, held_out=absent)
    assert without.label == "plausible"
    assert "attack_after" not in without.numbers


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"held_out": None}, "pass validation="),
        ({"forget": None}, "pass forget="),
        ({"forget": "unlabelled"}, "have no labels"),
        ({"held_out": "unlabelled"}, "held-out samples have no labels"),
    ],
)
def test_what_cannot_be_compared_is_not_measured(change: dict[str, Any], text: str) -> None:
    at = world()
    given = {name: at[name].without_labels() if value else None for name, value in change.items()}
    found = effect(at, at["model"](0.0), **given)
    assert found.label == "not measured"
    assert text in found.sentence


def test_held_out_samples_of_other_classes_only_compare_nothing() -> None:
    at = world()
    one = at["forget"].take(at["forget"].index[at["forget"].y == 1])
    absent = at["held_out"].take(at["held_out"].index[at["held_out"].y != 1])
    found = effect(at, at["model"](0.0), forget=one, held_out=absent)
    assert found.label == "not measured"
    assert "(classes [1])" in found.sentence


def test_records_come_back_and_models_stay() -> None:
    at = world()
    before, after = at["model"](6.0).train(), at["model"](1.2)
    found = measure_effect(before, after, forget=at["forget"], retain=at["retain"], held_out=at["held_out"])
    assert before.training
    assert not before.line._forward_hooks
    assert Effect.of_record(json.loads(json.dumps(found.record()))) == found
    assert measure_effect(before, before, forget=at["forget"], held_out=at["held_out"]).label == "nothing"
    assert found == measure_effect(before, after, forget=at["forget"], retain=at["retain"], held_out=at["held_out"])


def test_large_sets_are_drawn_by_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    import expunge.api.effect as module

    for name in ("MOST_FORGET", "MOST_RETAIN", "MOST_HELD_OUT"):
        monkeypatch.setattr(module, name, 30)
    at = world()
    found = [effect(at, at["model"](0.0), seed=seed) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    assert found[0].numbers["forget_samples"] == 30


def test_unlearn_reports_and_warns() -> None:
    x, y = torch.rand(80, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(80) % 4
    splits: dict[str, Split] = {
        "forget": as_split((x[:20], y[:20])), "retain": as_split((x[20:], y[20:])), "validation": as_split((x, y)),
    }  # fmt: skip
    torch.manual_seed(0)
    model = expunge.train(ToyNet(), (x[:80], y[:80]), recipe={"epochs": 40, "lr": 0.05, "batch_size": 20})
    fresh = (torch.rand(80, 1, 8, 8, generator=torch.Generator().manual_seed(1)), y)
    splits["validation"] = as_split(fresh)
    with pytest.warns(EffectWarning, match="nothing: the samples to forget are answered as before"):
        result = expunge.unlearn(model, method="neggrad", epochs=0, **splits)
    assert result.effect is not None
    assert result.record()["effect"]["label"] == "nothing"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expunge.unlearn(model, method="original", **splits)
        del splits["validation"]
        result = expunge.unlearn(model, method="neggrad", epochs=0, **splits)
    assert result.effect is not None
    assert result.effect.label == "not measured"
