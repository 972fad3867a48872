"""Unsee by hand: its goals, its kinds, its plan, and what it does where something is missing."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import expunge
from expunge.core.run import Run
from expunge.data.convert import as_split
from expunge.methods.scaling import Sizes
from expunge.methods.unsee import NEVER, Unsee, _Fitted, _Kind, _like, _Plan, _prior_odds, calibration, log_odds
from expunge.testing.conformance import RECIPE
from expunge.testing.toys import ToyNet, ToyProblem, toy_images, toy_problem
from expunge.training.inference import predict
from expunge.training.recipe import Recipe


def unsee(problem: ToyProblem, **options: Any) -> Any:
    given: dict[str, Any] = {"forget": problem.forget, "retain": problem.retain, "validation": problem.validation}
    given |= {"recipe": RECIPE, "precision": "float32", "measure": False}
    return expunge.unlearn(problem.model, method="unsee", device="cpu", **{**given, **options})


class Table(nn.Module):
    """Logits are the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * x


def test_log_odds_are_those_of_the_softmax() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    p = logits.softmax(1)[torch.arange(2), torch.tensor([2, 0])]
    assert torch.allclose(log_odds(logits, torch.tensor([2, 0])), (p / (1 - p)).log())


def held_out(*log_odds_of_class_0: float) -> Any:
    """Two-class logits of class 0 whose log-odds are these."""
    values = torch.tensor(log_odds_of_class_0)
    return as_split((torch.stack([values, torch.zeros_like(values)], 1), torch.zeros(len(values))), num_classes=2)


def test_goals_are_quantiles_of_the_held_out_samples_at_rank_and_place() -> None:
    others = held_out(4.0, 1.0, 3.0, 2.0)
    y = torch.zeros(2, dtype=torch.long)
    now = torch.tensor([9.0, 7.0])
    kind = _Kind("kept", torch.arange(2), others, torch.tensor([0.1, 0.9]))
    seen = kind.unseen(Table(), torch.zeros(2, 2), y, Run())
    assert seen.tolist() == [1.0, 2.0, 3.0, 4.0]
    assert kind.rank(now, own=0.0).tolist() == [0.75, 0.25]
    assert kind.rank(now, own=1.0).tolist() == pytest.approx([0.1, 0.9])
    # Ordered by the means .425 and .575, on places as far apart as .1 and .9 and as .25 and .75 on average.
    assert kind.rank(now, own=0.5).tolist() == pytest.approx([0.175, 0.825])


def test_a_class_that_vanishes_is_moved_below_never_in_one_piece() -> None:
    kind = _Kind("vanishes", torch.arange(1), held_out(*range(101)), None)
    seen = kind.unseen(Table(), torch.zeros(1, 2), torch.zeros(1, dtype=torch.long), Run())
    assert float(seen.quantile(0.98)) == pytest.approx(NEVER)
    assert float(seen[-1] - seen[0]) == pytest.approx(100.0)


def test_a_class_that_gets_rarer_is_expected_at_its_lower_prior() -> None:
    before, after = torch.tensor([40, 60]), torch.tensor([20, 60])
    change = (_prior_odds(after) / _prior_odds(before)).log()
    assert change.tolist() == pytest.approx([math.log(0.5), -math.log(0.5)])
    kind = _Kind("kept", torch.arange(1), held_out(-1.0, 0.0, 1.0), None, shift=-2.0)
    seen = kind.unseen(Table(), torch.zeros(1, 2), torch.zeros(1, dtype=torch.long), Run())
    assert seen.tolist() == pytest.approx([-3.0, -2.0, -1.0])


def test_calibration_finds_by_how_much_logits_are_stretched() -> None:
    random = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(4000, 3, generator=random)
    y = torch.multinomial(logits.softmax(1), 1, generator=random)[:, 0]
    assert calibration(4 * logits, y) == pytest.approx(4.0, rel=0.2)


def test_what_is_fitted_badly_is_drawn_again() -> None:
    problem = toy_problem(forget_class=None)
    fitted = _Fitted(problem.retain, Run())
    rows, y = torch.arange(len(problem.retain)), problem.retain.y
    logits = torch.nn.functional.one_hot(y, 4) * 40.0
    logits[:5] *= -1
    fitted.see(rows, logits, y)
    batch, drawn = next(fitted.worst(5, 1, 1, None))
    assert sorted(drawn.tolist()) == [0, 1, 2, 3, 4]
    assert torch.equal(batch.y, y[drawn])


def test_declared_wrong_labels_need_no_recognition() -> None:
    assert Unsee().scaled(Sizes(1, 1, wrong_labels=True)) == {"mislabelled": "yes"}
    assert Unsee().scaled(Sizes(1, 1, wrong_labels=False)) == {"mislabelled": "no"}
    assert Unsee().scaled(Sizes(1, 1)) == {}


def test_held_out_samples_come_in_the_proportions_of_the_forgotten_labels() -> None:
    wanted, labels = torch.tensor([0, 0, 0, 1]), torch.arange(400) % 4
    rows = _like(wanted, labels, 40, torch.Generator().manual_seed(0))
    assert len(rows.unique()) == 40
    counts = labels[rows].bincount(minlength=4)
    assert counts[2:].sum() == 0
    assert 22 <= int(counts[0]) <= 38
    assert len(_like(torch.tensor([5]), labels, 40, torch.Generator())) == 0


def test_the_plan_spends_its_share_and_no_more() -> None:
    recipe = Recipe(epochs=20, batch_size=64)
    for retained, forgotten in ((50_000, 500), (5_000, 5_000), (900, 20), (5_000, 1)):
        chosen = Unsee(share=0.2)
        plan = _Plan.of(chosen, retained, forgotten, recipe)
        trained = 3 * plan.rounds * plan.per_round * (plan.batch + plan.forget_batch)
        measured = plan.rounds * (plan.compared + forgotten)
        assert (trained + 0.5 * measured) / (3 * 20 * retained) < 0.22
        assert 1 <= plan.forget_batch <= forgotten
        assert plan.batch <= recipe.batch_size


@pytest.mark.parametrize("batchnorm", [True, False])
def test_a_class_that_nobody_keeps_is_no_longer_answered(batchnorm: bool) -> None:
    torch.manual_seed(0)
    problem = toy_problem(ToyNet(batchnorm=batchnorm), forget_class=1)
    result = unsee(problem, recipe={**RECIPE, "epochs": 20}, share=1.0, lr=0.02)
    forgotten = (predict(result.model, problem.forget).argmax(1) == problem.forget.y).float().mean()
    kept = (predict(result.model, problem.retain).argmax(1) == problem.retain.y).float().mean()
    assert float(forgotten) <= 0.2
    assert float(kept) >= 0.9


def test_single_samples_halves_and_bare_models_are_handled() -> None:
    """No recipe, 1 sample, half of the data, no held-out samples: each ends, and says what it lacks."""
    problem = toy_problem(forget_class=None)
    whole = torch.cat([problem.forget.index, problem.retain.index])
    store = as_split(toy_images(len(whole), 3))
    for count in (1, len(store) // 2):
        forget, retain = store.take(range(count)), store.take(range(count, len(store)))
        result = unsee(problem, forget=forget, retain=retain)
        assert result.status == "finished"
    bare = unsee(problem, validation=None, recipe=None, share=0.05)
    assert any("stand in" in note for note in bare.notes)
    assert any("recipe" in note for note in bare.notes)
    assert not any("stand in" in note for note in unsee(problem).notes)


def test_mislabelled_are_recognised_and_can_be_stated() -> None:
    """Samples that the original fits worse than nearly all others carry wrong labels; a random request does not."""
    problem = toy_problem(forget_class=None)
    labels = problem.forget.store.labels.clone()
    turned = problem.forget.with_labels((labels + 1) % 4)
    said = "the labels to forget look wrong"
    assert any(said in note for note in unsee(problem, forget=turned).notes)
    assert not any(said in note for note in unsee(problem).notes)
    assert not any(said in note for note in unsee(problem, forget=turned, mislabelled="no").notes)


def test_ten_requests_in_a_row_keep_the_accuracy() -> None:
    problem = toy_problem(forget_class=None)
    model, store = problem.model, as_split(toy_images(200, 5))
    for number in range(10):
        forget, retain = store.take(range(4 * number, 4 * number + 4)), store.take(range(4 * number + 4, 200))
        model = unsee(replace(problem, model=model), forget=forget, retain=retain).model
    accuracy = (predict(model, problem.validation).argmax(1) == problem.validation.y).float().mean()
    assert float(accuracy) >= 0.9
    assert all(math.isfinite(float(p.detach().sum())) for p in model.parameters())
