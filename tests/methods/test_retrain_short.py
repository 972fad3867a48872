"""Retrain-short by hand: it never meets a forgotten sample or a trained weight, and stops where the mark says."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import expunge
from expunge.core.errors import UsageError
from expunge.data.convert import as_split
from expunge.testing.conformance import RECIPE, same, weights
from expunge.testing.toys import ToyProblem, toy_images, toy_problem


def short(problem: ToyProblem, **options: Any) -> Any:
    given = {
        "forget": problem.forget,
        "retain": problem.retain,
        "validation": problem.validation,
        "recipe": RECIPE,
        "precision": "float32",
    }
    return expunge.unlearn(problem.model, method="retrain-short", device="cpu", **{**given, **options})


def test_no_trained_weight_and_no_forgotten_sample_reaches_it() -> None:
    problem = toy_problem()
    first = weights(short(problem, share=0.5, measure=False).model)
    with torch.no_grad():
        for p in problem.model.parameters():
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(9)))
    others = as_split(toy_images(7, 11), name="forget")
    assert same(first, weights(short(problem, forget=others, share=0.5, measure=False).model))


def test_the_start_weights_are_used_where_they_are_known() -> None:
    problem = toy_problem()
    drawn, known = short(problem, share=0.5), short(problem, share=0.5, initial=problem.initial)
    assert not same(weights(drawn.model), weights(known.model))


def test_auto_stops_at_the_first_cycle_that_reaches_the_mark() -> None:
    problem = toy_problem()
    recipe = {**RECIPE, "epochs": 16}
    easy = short(problem, recipe=recipe, tolerance=0.9)
    assert len(easy.history) == 4
    assert any("4 of 16 epochs" in note for note in easy.notes)
    hard = short(problem, recipe=recipe, tolerance=0.0, lr=1e-6)  # never near an original that learnt
    assert len(hard.history) == 16
    assert any("the mark was not reached" in note for note in hard.notes)


def test_a_share_is_so_many_epochs_in_one_cycle() -> None:
    result = short(toy_problem(), recipe={**RECIPE, "epochs": 10}, share=0.3)
    assert len(result.history) == 3


def test_no_held_out_samples_are_needed() -> None:
    result = short(toy_problem(), validation=None)
    assert not any("held-out samples" in note for note in result.notes)


@pytest.mark.parametrize("share", [0.0, 1.5, -1.0])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(UsageError, match="share"):
        short(toy_problem(), share=share)
