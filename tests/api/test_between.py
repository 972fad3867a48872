"""The dial between an original and an unlearned model: ends, line and curve by hand, and what the rule chooses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import expunge
from expunge.api.between import at
from expunge.core.errors import UsageError
from expunge.testing.conformance import weights
from expunge.testing.toys import ToyProblem, toy_problem


def unlearned(problem: ToyProblem, **options: Any) -> expunge.Result:
    return expunge.unlearn(
        problem.model, forget=problem.forget, retain=problem.retain, validation=problem.validation, method="neggrad+",
        epochs=6, lr=0.05, alpha=0.7, retain_batch_size=16, forget_batch_size=8, max_drop=None, measure=False,
        device="cpu", precision="float32", **options,
    )  # fmt: skip


def accuracy(model: nn.Module, split: Any) -> float:
    with torch.no_grad():
        return float((model(split.inputs()).argmax(1) == split.y).float().mean())


def test_points_of_line_and_curve_by_hand() -> None:
    first, last = (
        {"w": torch.tensor([1.0, -torch.inf]), "n": torch.tensor(3)},
        {"w": torch.tensor([3.0, -torch.inf]), "n": torch.tensor(5)},
    )
    assert at(0.25, first, last)["w"].tolist() == [1.5, -torch.inf]
    assert [int(at(t, first, last)["n"]) for t in (0.0, 0.25)] == [3, 5]
    curve = at(0.25, {"w": torch.tensor(1.0)}, {"w": torch.tensor(3.0)}, {"w": torch.tensor(5.0)})
    assert float(curve["w"]) == pytest.approx(0.5625 * 1 + 0.375 * 5 + 0.0625 * 3)


def test_an_accuracy_on_the_forget_set_is_met_and_the_ends_are_reached() -> None:
    problem = toy_problem()
    result = unlearned(problem)
    low, high = accuracy(result.model, problem.forget), accuracy(problem.model, problem.forget)
    assert low < 0.3 < 0.9 < high
    half = expunge.between(problem.model, result, target=0.5, points=41)
    errors = half.details["between"]["forget_error"]
    assert abs(accuracy(half.model, problem.forget) - 0.5) == pytest.approx(min(abs(e - 0.5) for e in errors), abs=1e-6)
    assert 0 < half.details["between"]["t"] < 1
    assert abs(accuracy(half.model, problem.forget) - 0.5) < 0.25
    start = expunge.between(problem.model, result, target=1.0)
    for name, value in weights(problem.model).items():
        torch.testing.assert_close(weights(start.model)[name], value)
    assert start.details["between"]["t"] == 0.0
    assert half.facts["method"] == "neggrad+"
    assert half.parent is result.parent
    assert half.effect is not None


def test_held_out_samples_choose_how_far_to_go() -> None:
    """The forget set is random and was answered better than unseen samples: the way is not gone to its end."""
    problem = toy_problem(forget_class=None)
    result = unlearned(problem)
    chosen = expunge.between(problem.model, result)
    told = chosen.details["between"]
    gaps = [abs(a - b) for a, b in zip(told["forget_error"], told["wanted_error"], strict=True)]
    assert told["t"] == gaps.index(min(gaps)) / 20
    assert gaps.index(min(gaps)) < 20


def test_the_curve_is_better_on_the_retained_samples_than_the_line() -> None:
    problem = toy_problem()
    result = unlearned(problem)
    models = [
        expunge.between(problem.model, result, target=0.5, path=path, epochs=8, lr=0.05).model
        for path in ("line", "curve")
    ]
    losses = [float(F.cross_entropy(model(problem.retain.inputs()), problem.retain.y).detach()) for model in models]
    assert losses[1] < losses[0]


def test_what_between_refuses() -> None:
    problem = toy_problem()
    result = unlearned(problem)
    with pytest.raises(UsageError, match="needs what `unlearn` returned"):
        expunge.between(problem.model, expunge.TrainedModel(model=problem.model))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="two models of the same shape"):
        expunge.between(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), result)
    with pytest.raises(UsageError, match="needs labelled held-out samples"):
        expunge.between(problem.model, replace(result, held_out=None))
    with pytest.raises(UsageError, match=r"accuracy in \[0, 1\], got 2"):
        expunge.between(problem.model, result, target=2)
    with pytest.raises(UsageError, match="points >= 2"):
        expunge.between(problem.model, result, points=1)
    with pytest.raises(UsageError, match="the curve is trained on retained samples"):
        expunge.between(problem.model, replace(result, train=None), path="curve")
