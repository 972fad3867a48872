"""LoTUS: the targets by their distribution, the temperature and the stop by hand, what it reads."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from expunge.core.needs import Needs
from expunge.methods.lotus import LoTUS, gumbel_targets
from expunge.testing.conformance import run, same, weights
from expunge.testing.toys import toy_problem
from expunge.training.inference import error_rate, predict


def test_hard_targets_are_samples_of_the_softmax() -> None:
    """Gumbel-max: the arg max of z + G is distributed as softmax(z)."""
    p = torch.tensor([0.5, 0.3, 0.2])
    hard = gumbel_targets(p.log().expand(20000, 3), None, torch.Generator().manual_seed(0))
    assert set(hard.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(hard.mean(0), p, rtol=0, atol=0.015)


def test_soft_targets_by_an_independent_formula() -> None:
    """With E exponential, z + G = log(p / E): so t_c is proportional to (p_c / E_c)^(1 / tau)."""
    p, tau = torch.tensor([[0.7, 0.2, 0.1]]), 2.5
    made = gumbel_targets(p.log(), tau, torch.Generator().manual_seed(3))
    exponential = -torch.rand(p.shape, generator=torch.Generator().manual_seed(3)).log()
    expected = (p / exponential) ** (1 / tau)
    torch.testing.assert_close(made, expected / expected.sum())


def test_temperature_follows_the_accuracy_in_excess() -> None:
    problem = toy_problem()
    result = run(LoTUS(target="none", alpha=2.0, epochs=3, lr=0.01, batch_size=16, max_drop=None), problem)
    first = 1 - error_rate(predict(problem.model, problem.forget), problem.forget.y)
    assert result.history[0]["temperature"] == pytest.approx(math.exp(2 * first))
    for before, after in zip(result.history, result.history[1:], strict=False):
        assert after["temperature"] == pytest.approx(math.exp(2 * before["excess_accuracy"]))


def test_it_stops_below_the_held_out_accuracy_and_does_nothing_where_it_is_there() -> None:
    problem = toy_problem()
    result = run(LoTUS(alpha=8.0, lr=0.05, epochs=20, batch_size=16, max_drop=None), problem)
    assert result.status == "reached"
    assert result.history[-1]["excess_accuracy"] <= -0.01
    assert all(row["excess_accuracy"] > -0.01 for row in result.history[:-1])
    wrong = replace(problem, forget=problem.forget.with_labels((problem.store.labels + 1) % 4))
    unchanged = run(LoTUS(), wrong)
    assert unchanged.status == "already"
    assert same(weights(unchanged.model), weights(problem.model))


def test_what_it_reads() -> None:
    assert LoTUS().needs == Needs(forget="labels", retain="inputs", validation="labels")
    assert LoTUS(target="none").needs == Needs(forget="labels", retain="inputs")
