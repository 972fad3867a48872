"""The guard takes a model back to its last point within the limit, and lets one that recovers go on."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import expunge
from expunge.core.errors import DivergedError
from expunge.core.run import Run
from expunge.data.convert import as_split
from expunge.methods.base import make_method
from expunge.testing.toys import ToyProblem, toy_problem
from expunge.training.guard import Guard

pytestmark = pytest.mark.filterwarnings("ignore::expunge.core.errors.EffectWarning")


class Constant(nn.Module):
    """Right on the first `right` of 100 samples."""

    def __init__(self, right: int) -> None:
        super().__init__()
        self.right = nn.Parameter(torch.tensor(float(right)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        good = (x[:, 0] < self.right).float()
        return torch.stack([good, 1 - good], 1)

    def set(self, right: int) -> None:
        with torch.no_grad():
            self.right.fill_(float(right))


def guard_of_a_hundred() -> Guard:
    return Guard(as_split((torch.arange(100.0)[:, None], torch.zeros(100, dtype=torch.long)), num_classes=2), 0.03)


def guarded(accuracies: list[int]) -> tuple[Run, Constant, int]:
    """A model whose accuracy in percent, 100 at first, is given for every epoch; the run, and the epochs it made."""
    model, run = Constant(100), Run(guard=guard_of_a_hundred())
    run.guard.begin(copy.deepcopy(model))
    passes = 0
    for epoch in run.epochs(model, len(accuracies)):
        model.set(accuracies[epoch.number - 1])
        epoch.add("loss", 0.0, 10)
        passes += 1
    return run, model, passes


@pytest.mark.parametrize(
    ("accuracies", "left", "passes"),
    [
        ([99, 98, 97], 97, 3),  # exactly three points are allowed
        ([99, 98, 90], 98, 3),
        ([90, 80, 70, 60, 50, 40], 100, 4),  # no point within: back to the start, after three that did not rise
        ([50, 70, 90, 98], 98, 4),  # one that recovers goes on
        ([98, 50, 60, 60, 60, 60, 60], 98, 6),
    ],
)
def test_goes_back_to_the_last_point_within(accuracies: list[int], left: int, passes: int) -> None:
    run, model, made = guarded(accuracies)
    assert (int(model.right), made) == (left, passes)
    stopped = accuracies[made - 1] < 97
    assert run.status == ("stopped: utility" if stopped else "finished")
    assert len(run.notes) == int(stopped)
    if stopped:
        assert f"from 100.0% to {accuracies[made - 1]:.1f}%, by more than `max_drop` (0.03)" in run.notes[0]


def test_looks_within_a_long_pass() -> None:
    model, run = Constant(100), Run(guard=guard_of_a_hundred())
    run.guard.begin(copy.deepcopy(model))
    for epoch in run.epochs(model, 1):
        for step, value in enumerate([99, 98, 60, 50]):
            model.set(value)
            epoch.add("loss", 0.0, 400 if step == 1 else 200)
    assert int(model.right) == 98
    assert run.notes[0].endswith("the model is as after part of pass 1.")


@pytest.fixture(scope="module")
def toy() -> ToyProblem:
    return toy_problem(forget_class=None)


def unlearn(toy: ToyProblem, method: Any, **more: Any) -> Any:
    given = {"forget": toy.forget, "retain": toy.retain, "validation": toy.validation, **more}
    return expunge.unlearn(toy.model, method=method, device="cpu", **given)


def test_a_method_that_ruins_the_model_is_stopped(toy: ToyProblem) -> None:
    result = unlearn(toy, "neggrad", lr=0.5, clip=1.0, epochs=40)
    assert result.status == "stopped: utility"
    assert len(result.history) < 40
    assert result.effect.label != "damaged"
    toy.clear()
    free = unlearn(toy, "neggrad", lr=0.5, clip=1.0, epochs=40, max_drop=None)
    assert toy.read("validation") == 2 + 2 * len(toy.validation)  # nobody but the check of shapes and the effect looked
    assert (free.status, free.effect.label) == ("finished", "damaged")


def test_without_held_out_samples_it_watches_retained_ones_or_says_that_it_is_off(toy: ToyProblem) -> None:
    result = unlearn(toy, "neggrad", lr=0.5, clip=1.0, epochs=40, validation=None)
    assert result.status == "stopped: utility"
    assert any("it watched retained ones, of which 9% may be lost" in note for note in result.notes)
    alone = unlearn(toy, "neggrad", epochs=1, validation=None, retain=None)
    assert any("`max_drop`) was off" in note for note in alone.notes)
    assert not unlearn(toy, "neggrad", epochs=1, validation=None, max_drop=None).notes


def test_presets_have_no_guard() -> None:
    assert make_method("scrub").max_drop == 0.03
    assert make_method("scrub/small-rb").max_drop is None
    assert make_method("scrub/small-rb", max_drop=0.1).max_drop == 0.1
    assert make_method("retrain").max_drop is None


def test_a_default_rate_that_diverges_is_lowered_once(toy: ToyProblem, monkeypatch: pytest.MonkeyPatch) -> None:
    from expunge.methods.finetune import Finetune

    rates: list[float] = []

    def unlearn_once(self: Finetune, problem: Any, run: Run) -> nn.Module:
        rates.append(self.lr)
        student = problem.student()
        for epoch in run.epochs(student, 1):
            for step in range(40):
                epoch.add("loss", float("nan") if len(rates) == 1 and step > 3 else 1.0, 4)
                rates.append(step) if len(rates) == 1 and step > 20 else None
        return student

    monkeypatch.setattr(Finetune, "unlearn", unlearn_once)
    result = unlearn(toy, "finetune")
    assert rates == [0.01, 0.001]  # seen within the epoch: no step after the twentieth
    assert "the second try, at a learning rate of 0.001" in result.notes[-1]
    assert result.facts["options"]["lr"] == 0.001
    rates.clear()
    with pytest.raises(DivergedError, match="in epoch 1: `loss` is nan"):
        unlearn(toy, "finetune", lr=0.02)
    rates.clear()
    with pytest.raises(DivergedError):
        unlearn(toy, "finetune", max_drop=None)
