"""The SSD family: dampening and its thresholds by hand, the whole method against a slow loop."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from expunge.methods.ssd import SSD, Potion, adaptive_percentile, at_percentile, dampened, sorted_ratios
from expunge.testing.conformance import run, same, weights
from expunge.testing.toys import toy_problem
from expunge.training.inference import error_rate, predict


def test_dampening_by_hand() -> None:
    """Selected strictly above alpha; the factor is lam I_D / I_F, and at most 1; I_F = 0 is never selected."""
    i_all = torch.tensor([1.0, 1.0, 2.0, 0.0, 1.0], dtype=torch.float64)
    i_forget = torch.tensor([10.0, 11.0, 40.0, 0.0, 11.0], dtype=torch.float64)
    weight = torch.tensor([1.0, 1.1, 4.0, 5.0, -2.2])
    made = dampened(weight, i_all, i_forget, alpha=10.0, lam=1.0)
    torch.testing.assert_close(made, torch.tensor([1.0, 0.1, 0.2, 5.0, -0.2]))
    torch.testing.assert_close(dampened(weight, i_all, i_forget, alpha=10.0, lam=100.0), weight)


def test_percentiles_by_hand() -> None:
    i_all = {"a": torch.ones(4, dtype=torch.float64), "b": torch.full((6,), 2.0, dtype=torch.float64)}
    i_forget = {"a": torch.arange(4.0).double(), "b": 2 * torch.arange(4.0, 10.0).double()}
    ratios = sorted_ratios(i_all, i_forget)
    assert ratios.tolist() == list(range(10))
    assert at_percentile(ratios, 80) == 7  # so 8 and 9, the largest two of ten, lie strictly above
    assert at_percentile(ratios, 100) == 9
    assert adaptive_percentile(0.05) == pytest.approx(100 - math.log(6))


def test_per_sample_against_a_slow_loop() -> None:
    problem = toy_problem(forget_class=None)
    made = run(SSD(unit="sample", alpha=1.5, lam=0.5), problem).model
    names = [name for name, _ in problem.model.named_parameters()]

    def squares(split) -> list[torch.Tensor]:  # type: ignore[no-untyped-def]
        total = [torch.zeros_like(p) for p in problem.model.parameters()]
        for batch in split.batches(1):
            loss = F.cross_entropy(problem.model(batch.x), batch.y)
            for sum_, g in zip(total, torch.autograd.grad(loss, list(problem.model.parameters())), strict=True):
                sum_ += g * g
        return total

    forget, retain = squares(problem.forget), squares(problem.retain)
    state, moved = weights(made), 0
    for name, p, f, r in zip(names, problem.model.parameters(), forget, retain, strict=True):
        i_forget, i_all = f / len(problem.forget), (f + r) / (len(problem.forget) + len(problem.retain))
        chosen = i_forget > 1.5 * i_all
        moved += int(chosen.sum())
        expected = torch.where(chosen, p.detach() * (0.5 * i_all / i_forget.clamp(min=1e-30)).clamp(max=1), p.detach())
        torch.testing.assert_close(state[name], expected, rtol=1e-4, atol=1e-6)
    assert moved > 0


def test_per_sample_ratios_cannot_pass_the_share_of_the_forget_set() -> None:
    """I_F / I_D <= |D| / |F|: what a tenth of the data or more cannot reach with alpha = 10 is said, not done."""
    problem = toy_problem(forget_class=None)
    result = run(SSD(unit="sample", alpha=10.0), problem)
    assert same(weights(result.model), weights(problem.model))
    assert any("no weight was selected" in note for note in result.notes)


def test_potion_stops_at_the_first_share_that_reaches_its_target() -> None:
    problem = toy_problem()
    result = run(Potion(rho=0.5, batch_size=8, growth=1.3), problem)
    before, after = (
        1 - error_rate(predict(m, problem.forget), problem.forget.y) for m in (problem.model, result.model)
    )
    assert result.status == "reached"
    assert after <= 0.5 * before
    fewer = run(Potion(rho=0.5, batch_size=8, growth=1.3, rounds=result.details["rounds"] - 1), problem)
    assert fewer.status == "limit"
    assert fewer.details["forget_accuracy"] > 0.5 * before
    assert any("still" in note for note in fewer.notes)
