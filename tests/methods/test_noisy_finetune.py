"""The accountant against integrals, the noisy steps by hand, and that no audit proves more than the guarantee."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.integrate import quad
from scipy.stats import norm
from torch import nn

import expunge
from expunge.api.planning.planner import make_plan
from expunge.api.planning.situation import Situation
from expunge.core.errors import UsageError
from expunge.core.run import Run
from expunge.data.split import ResidentStore, Split
from expunge.evidence.rates import epsilon_bound
from expunge.methods.noisy_finetune import NoisyFinetune, clipped, set_vector, vector
from expunge.methods.problem import Problem
from expunge.models.initial import reset_parameters
from expunge.numerics.accountant import ball_noise, bounded_noise, gaussian_delta, largest_m
from expunge.testing.conformance import run
from expunge.testing.toys import ToyNet, toy_problem
from expunge.training.recipe import Recipe


@pytest.mark.parametrize(("m", "epsilon"), [(0.5, 0.0), (1.0, 0.5), (3.0, 2.0)])
def test_delta_of_gaussian_noise_is_the_integral(m: float, epsilon: float) -> None:
    def excess(x: float) -> float:
        return float(max(norm.pdf(x, m) - math.exp(epsilon) * norm.pdf(x), 0.0))

    assert gaussian_delta(m, epsilon) == pytest.approx(quad(excess, -10, 12, points=[m / 2 + epsilon / m])[0], abs=1e-6)
    assert gaussian_delta(largest_m(epsilon, 0.01), epsilon) == pytest.approx(0.01, rel=1e-6)


def test_two_steps_in_a_ball_are_at_least_as_private_as_is_stated() -> None:
    """The worst chain in one dimension (from -1 and 1, every step clipped to [-1, 1]), by densities on a grid."""
    epsilon, delta = 0.5, 0.1
    s = ball_noise(epsilon, delta, 2, 1.0)
    assert gaussian_delta(2 / s, epsilon) ** 2 == pytest.approx(delta, rel=1e-6)
    grid = np.linspace(-1 - 8 * s, 1 + 8 * s, 1201)
    width = grid[1] - grid[0]
    kernel = norm.pdf(grid[None, :], np.clip(grid, -1, 1)[:, None], s) * width  # from row to column
    laws = [(norm.pdf(grid, start, s) * width) @ kernel for start in (-1.0, 1.0)]
    found = np.maximum(laws[0] - math.exp(epsilon) * laws[1], 0).sum()
    assert 0 < found <= delta
    one_step = [norm.pdf(grid, start, s) * width for start in (-1.0, 1.0)]
    assert np.maximum(one_step[0] - math.exp(epsilon) * one_step[1], 0).sum() > delta  # one alone would not do


def test_bounded_steps_are_tight_for_two_starts_that_are_pushed_apart() -> None:
    """x <- q x + c + noise and y <- q y - c + noise end as Gaussians: distance and spread by hand."""
    epsilon, delta, steps, radius, lr, clip, decay = 1.0, 1e-3, 7, 2.0, 0.1, 0.5, 0.6
    s = bounded_noise(epsilon, delta, steps, radius, lr, clip, decay)
    q, x, y, variance = 1 - lr * decay, radius, -radius, 0.0
    for _ in range(steps):
        x, y, variance = q * x + lr * clip, q * y - lr * clip, q * q * variance + s * s
    assert gaussian_delta((x - y) / math.sqrt(variance), epsilon) == pytest.approx(delta, rel=1e-5)


def test_one_noisy_step_by_hand() -> None:
    torch.manual_seed(0)
    problem = toy_problem(ToyNet(batchnorm=False))
    given: dict[str, Any] = {
        "noisy_steps": 1,
        "epochs": 0,
        "lr": 0.1,
        "batch_size": 1000,
        "epsilon": 80.0,
        "radius": 0.5,
    }
    for bound in ("model", "gradient"):
        chosen = NoisyFinetune(bound=bound, clip=0.3, **given)
        result = run(chosen, problem, seed=2)
        told = result.details["certificate"]
        radius, sigma = told["radius"], told["sigma"]
        model = toy_problem_copy(problem)
        set_vector(model, clipped(vector(model), radius))
        F.cross_entropy(model(problem.retain.inputs()), problem.retain.y).backward()
        g = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        w = vector(model)
        moved = clipped(w - 0.1 * g, radius) if bound == "model" else w - 0.1 * clipped(g, 0.3)
        noise = torch.randn(len(w), generator=torch.Generator().manual_seed(Run(seed=2).seed_for("noise")))
        set_vector(model, moved + sigma * noise)
        fresh = toy_problem_copy(problem)
        reset_parameters(fresh, seed=Run(seed=2).seed_for("fresh weights"))
        assert radius == pytest.approx(0.5 * float(vector(fresh).norm()))
        for made, wanted, twin in zip(result.model.parameters(), model.parameters(), fresh.parameters(), strict=True):
            torch.testing.assert_close(made, wanted * (twin.norm() / wanted.norm()), rtol=1e-4, atol=1e-5)
        assert (told["epsilon"], told["delta"]) == (80.0, 1e-5)
        assert sigma == pytest.approx(chosen.noise(radius))
        assert "(epsilon, delta) = (80, 1e-05)" in result.notes[-1]
        assert result.record()["details"]["certificate"] == told


def toy_problem_copy(problem: Any) -> nn.Module:
    model = ToyNet(batchnorm=False)
    model.load_state_dict(problem.model.state_dict())
    return model


def test_it_never_reads_the_forget_set_and_takes_no_guard() -> None:
    assert NoisyFinetune().needs.forget == "none"
    with pytest.raises(UsageError, match="has no option `max_drop`"):
        expunge.method("noisy-finetune")(max_drop=0.1)
    with pytest.raises(UsageError, match="lr x decay below 1"):
        run(NoisyFinetune(bound="gradient", lr=2.0, decay=1.0), toy_problem())


def test_a_guarantee_is_planned_where_it_is_asked_for_and_nothing_exact_fits() -> None:
    def at(**more: Any) -> Situation:
        return Situation(forget=10, retain=90, classes=4, **more)

    plan = make_plan(at(certified=True))
    assert (plan.method, plan.exact) == ("noisy-finetune", False)
    assert "certified: an (epsilon, delta) guarantee was asked for" in plan.why[0]
    assert make_plan(at(certified=True, recipe=Recipe())).method == "retrain"
    assert make_plan(at()).method != "noisy-finetune"
    with pytest.raises(UsageError, match="noisy-finetune needs the samples that stay with their labels"):
        make_plan(Situation(forget=10, classes=4, retain_data=False, certified=True))
    toy = toy_problem()
    with pytest.raises(UsageError, match="`certified` tells `auto`"):
        expunge.unlearn(toy.model, forget=toy.forget, retain=toy.retain, method="finetune", certified=True)
    made = expunge.unlearn(toy.model, forget=toy.forget, retain=toy.retain, certified=True, measure=False)
    assert made.details["certificate"]["epsilon"] == 1.0


def laws(epsilon: float, runs: int, seed: int, sigma: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Losses on a forgotten point after certified unlearning, of a model that knew it and of one that did not."""
    torch.manual_seed(0)
    x = torch.randn(16, 2)
    retain = Split.whole(ResidentStore(x, (x[:, 0] > 0).long(), classes=["a", "b"], name="line"), "retain")
    point, label = torch.tensor([[3.0, 1.0]]), torch.tensor([0])
    chosen = NoisyFinetune(epsilon=epsilon, delta=0.05, noisy_steps=2, epochs=0, lr=0.1, batch_size=16, radius=1.0)
    if sigma is not None:
        object.__setattr__(chosen, "noise", lambda radius: sigma)
    found = []
    for side in (1.0, -1.0):  # two trainings that ended at opposite points: the worst that the guarantee allows for
        model = nn.Linear(2, 2)
        with torch.no_grad():
            model.weight.copy_(side * torch.tensor([[5.0, 2.0], [-5.0, -2.0]]))
        problem = Problem(
            model=model.eval().requires_grad_(False), num_classes=2, input_shape=(2,), needs=chosen.needs,
            _splits={"retain": retain},
        )  # fmt: skip
        losses = []
        for number in range(runs):
            made = chosen.unlearn(problem, Run(seed=seed + number))
            with torch.no_grad():
                losses.append(float(F.cross_entropy(made(point), label)))
        found.append(np.array(losses))
        seed += 10**6
    return found[0], found[1]


def audit(knew: np.ndarray, did_not: np.ndarray) -> float:
    """The 95 % lower bound, of the threshold that looked best on the first half, measured on the second."""
    half = len(knew) // 2

    def bound(part: slice, threshold: float) -> float:
        caught, wrong = (int((losses[part] < threshold).sum()) for losses in (knew, did_not))
        return epsilon_bound(caught, half, wrong, half, delta=0.05)

    choose, measure = slice(None, half), slice(half, None)
    candidates = np.quantile(np.concatenate([knew[choose], did_not[choose]]), np.linspace(0.05, 0.95, 19))
    return bound(measure, max(candidates, key=lambda threshold: bound(choose, threshold)))


def test_an_audit_proves_more_where_the_noise_is_too_small() -> None:
    assert audit(*laws(0.5, 60, 0, sigma=0.05)) > 0.5


@pytest.mark.slow
def test_no_audit_proves_more_than_the_guarantee() -> None:
    bounds = [audit(*laws(0.5, 60, 1000 * number)) for number in range(40)]
    assert sum(bound > 0.5 for bound in bounds) <= 2  # 5 % of 40
