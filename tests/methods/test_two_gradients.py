"""Rules that combine two gradients: by hand, against slow oracles, and by what they promise; one step of each loop."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from expunge.core.needs import Needs
from expunge.core.run import Run
from expunge.methods.two_gradients import (
    AGRMO,
    CUP,
    HAMU,
    MUNBa,
    OrthoGrad,
    PCGrad,
    cup,
    entropy,
    flat_gradient,
    hamu,
    munba,
    orthograd,
    pcgrad,
    same_cosine,
    without_conflict,
)
from expunge.testing.conformance import run, weights
from expunge.testing.toys import ToyNet, ToyProblem, toy_problem


def pairs(count: int = 20, size: int = 6) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(count, 2, size, generator=generator, dtype=torch.float64)
    return [(a, b * 3) for a, b in draws]


def cos(a: Tensor, b: Tensor) -> float:
    return float(F.cosine_similarity(a, b, dim=0))


def test_pcgrad_by_hand() -> None:
    """(1, 0) and (-1, 1) conflict: (.5, .5) and (0, 1). (1, 0) and (1, 1) agree and are added."""
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0])
    torch.testing.assert_close(pcgrad(a, b, 2.0), torch.tensor([0.5, 2.5]))
    torch.testing.assert_close(pcgrad(a, -b, 1.0), torch.tensor([2.0, -1.0]))


def test_no_pair_is_in_conflict_afterwards_with_the_other_before() -> None:
    for a, b in pairs():
        kept, lost = without_conflict(a, b)
        assert kept @ b >= -1e-9
        assert lost @ a >= -1e-9


def test_munba_solves_the_bargain_and_is_the_published_closed_form() -> None:
    for a, b in pairs():
        g1, g2, g3 = float(a @ a), float(a @ b), float(b @ b)
        x = math.sqrt((g1 * g3 - g2 * math.sqrt(g1 * g3)) / (g1**2 * g3 - g1 * g2**2))
        y = (1 - g1 * x**2) / (g2 * x)
        torch.testing.assert_close(munba(a, b), x * a + y * b, rtol=1e-6, atol=1e-9)
        gram = np.array([[g1, g2], [g2, g3]])
        np.testing.assert_allclose(gram @ np.array([x, y]), 1 / np.array([x, y]), rtol=1e-6)  # G a = 1 / a
        assert float(munba(a, b).norm()) == pytest.approx(math.sqrt(2))
    a = torch.tensor([1.0, 0.0])
    torch.testing.assert_close(munba(a, -a), a - 0.1 * a)  # nothing to bargain about
    torch.testing.assert_close(munba(a, 0 * a), a)


def test_cup_turns_from_retaining_to_forgetting() -> None:
    """Orthogonal unit gradients: theta = 90 degrees, |mean| = sqrt(.5)."""
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    for gamma in (0.2, 0.5, 0.8):
        angle = gamma * math.pi / 2
        torch.testing.assert_close(cup(a, b, gamma), math.sqrt(0.5) * torch.tensor([math.cos(angle), math.sin(angle)]))
    for a, b in pairs():
        towards = [cos(cup(a, b, gamma), b) for gamma in (0.01, 0.3, 0.6, 0.99)]
        away = [cos(cup(a, b, gamma), a) for gamma in (0.01, 0.3, 0.6, 0.99)]
        assert towards == sorted(towards) or cos(a, b) > 0  # where they agree, g_f lies on the way
        assert min(*towards, *away) > -0.02  # between them it harms neither
    torch.testing.assert_close(cup(a, a, 0.5), a)


def test_hamu_is_the_best_direction_that_meets_the_demand() -> None:
    """Against a fine search over all directions of the plane; the demand is met with equality where it binds."""
    angles = torch.linspace(0, 2 * math.pi, 20001, dtype=torch.float64)
    circle = torch.stack([angles.cos(), angles.sin()], 1)
    for q in (0.3, 0.8):
        for r, a in pairs(size=2):
            d = hamu(r, a, q)
            assert float(d.norm()) == pytest.approx(1, abs=1e-6)
            assert cos(d, a) <= -q + 1e-9
            allowed = circle[circle @ a / a.norm() <= -q]
            assert cos(d, r) >= float((allowed @ r / r.norm()).max()) - 1e-3
            # Above the published threshold, and only there, retained loss rises whatever the step.
            assert (cos(d, r) < 0) == (cos(r, a) > math.sqrt(1 - q**2))


def test_hamu_stops_by_itself_and_says_how_hard_it_was() -> None:
    problem = toy_problem(forget_class=None)
    result = run(HAMU(epochs=40, lr=0.1, demand=0.5, patience=2, max_drop=None, retain_batch_size=16), problem)
    assert result.status == "reached"
    assert len(result.history) < 40
    assert result.details["cosine"]["last"] > math.sqrt(0.75)
    assert result.details["cosine"]["steps"] > 2
    assert result.history[-1]["forget_loss"] < -0.1


def test_same_cosine() -> None:
    for a, b in pairs():
        made = same_cosine(a, b)
        assert cos(made, a) == pytest.approx(cos(made, b))
        share = float(b.norm() / (a.norm() + b.norm()))
        torch.testing.assert_close(made, share * a + (1 - share) * b)


def test_orthograd_against_a_projection_by_normal_equations() -> None:
    generator = torch.Generator().manual_seed(1)
    rows, g = torch.randn(4, 30, generator=generator), torch.randn(30, generator=generator)
    rows[3] = rows[0] + rows[1]  # spans nothing new
    basis = rows[:3].double()
    projected = g - (basis.T @ torch.linalg.solve(basis @ basis.T, basis @ g.double())).float()
    made = orthograd(rows, g, 0.25)
    torch.testing.assert_close(made, 0.25 * rows.mean(0) + 0.75 * projected, rtol=1e-4, atol=1e-5)
    assert float((rows @ orthograd(rows, g, 0.0)).abs().max()) < 1e-4


def test_entropy_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]])
    torch.testing.assert_close(
        entropy(logits), torch.tensor([math.log(2), -0.75 * math.log(0.75) - 0.25 * math.log(0.25)])
    )


def plain() -> ToyProblem:
    torch.manual_seed(0)
    return toy_problem(ToyNet(batchnorm=False))


ONE: dict[str, Any] = {
    "epochs": 1, "lr": 0.1, "retain_batch_size": 1000, "forget_batch_size": 1000, "max_drop": None, "clip": None,
}  # fmt: skip


def test_one_step_of_pcgrad_by_ascent_against_autograd() -> None:
    made = weights(run(PCGrad(objective="ascend", weight=0.5, **ONE), plain()).model)
    problem = plain()
    model = problem.model
    g_r, g_f = (
        torch.autograd.grad(sign * F.cross_entropy(model(s.inputs()), s.y), list(model.parameters()))
        for s, sign in ((problem.retain, 1), (problem.forget, -1))
    )
    dot = sum(float((a * b).sum()) for a, b in zip(g_r, g_f, strict=True))
    n_r, n_f = (sum(float((a * a).sum()) for a in g) for g in (g_r, g_f))
    for (name, p), a, b in zip(model.named_parameters(), g_r, g_f, strict=True):
        d = a - min(0.0, dot) / n_f * b + 0.5 * (b - min(0.0, dot) / n_r * a)
        torch.testing.assert_close(made[name], p.detach() - 0.1 * d, rtol=1e-4, atol=1e-6)


def test_one_step_of_orthograd_against_single_gradients() -> None:
    made = weights(run(OrthoGrad(alpha=0.3, until="epochs", **ONE), plain()).model)
    problem = plain()
    model = problem.model.requires_grad_(True)
    x, y = problem.retain.inputs(), problem.retain.y
    rows = torch.stack(
        [flat_gradient(F.cross_entropy(model(a[None]), b[None]), model) for a, b in zip(x, y, strict=True)]
    )
    ascent = flat_gradient(-F.cross_entropy(model(problem.forget.inputs()), problem.forget.y), model)
    u, s, _ = torch.linalg.svd(rows.T.double(), full_matrices=False)
    u = u[:, s > 1e-6 * s.max()]
    d = 0.3 * rows.mean(0) + 0.7 * (ascent - (u @ (u.T @ ascent.double())).float())
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    got = torch.cat([made[name].flatten() for name, _ in model.named_parameters()])
    torch.testing.assert_close(got, flat - 0.1 * d, rtol=1e-2, atol=2e-4)


def test_agrmo_learns_to_weigh_what_is_answered_confidently() -> None:
    problem = plain()
    chosen = AGRMO(rate=1.0)
    rule: Any = chosen.rule(problem, Run())  # type: ignore[arg-type]
    batch = next(iter(problem.forget.batches(2)))
    rule.forget_loss(torch.tensor([[9.0, 0, 0, 0], [0.0, 0, 0, 0]]), batch)
    sure, unsure = rule._weights[batch.index].tolist()
    assert sure / unsure == pytest.approx(4.0, rel=0.02)  # exp(ln 4 - almost 0)


def test_what_is_read() -> None:
    both = Needs(forget="labels", retain="labels")
    assert MUNBa().needs == CUP().needs == HAMU().needs == PCGrad().needs == both
    assert PCGrad(objective="entropy").needs == AGRMO().needs == Needs(forget="inputs", retain="labels")
    assert OrthoGrad(until="epochs").needs == both
    assert OrthoGrad().needs.validation == "labels"


@pytest.mark.parametrize("chosen", [MUNBa(), CUP(), HAMU(), AGRMO(), PCGrad()], ids=lambda m: m.card.name)
def test_a_class_is_forgotten_and_the_rest_kept(chosen: Any) -> None:
    problem = toy_problem()
    made = run(type(chosen)(epochs=8, lr=0.05, retain_batch_size=16, forget_batch_size=16), problem)
    kept = float((made.model(problem.retain.inputs()).argmax(1) == problem.retain.y).float().mean())
    away = float((made.model(problem.forget.inputs()).argmax(1) == problem.forget.y).float().mean())
    assert kept > 0.9
    assert away < 0.5
