"""JIT and MU-Mis: their losses by hand and by an independent derivation, and what they leave alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from expunge.core.run import Run
from expunge.methods.jit import JIT, steepness
from expunge.methods.mu_mis import MUMis, sensitivities
from expunge.testing.conformance import run, weights
from expunge.testing.toys import ToyNet, toy_images, toy_problem


def test_steepness_by_hand() -> None:
    logits, moved = torch.tensor([[3.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 4.0], [1.0, 1.0]])
    noise = torch.tensor([[[2.0, 0.0]], [[0.0, 1.0]]])
    assert float(steepness(logits, moved, noise)) == pytest.approx((5 / 2 + 0) / 2)


def test_one_step_of_jit_against_a_plain_one() -> None:
    torch.manual_seed(0)
    problem = toy_problem(ToyNet(batchnorm=False))
    made = run(JIT(epochs=1, lr=0.1, copies=3, batch_size=30, max_drop=None), problem, seed=2).model
    model, start = problem.model, weights(problem.model)
    model.zero_grad()
    run_ = Run(seed=2)
    generator = torch.Generator().manual_seed(run_.seed_for("noise", 1))
    (batch,) = problem.forget.batches(30, shuffle=True, seed=run_.seed_for("forget", "shuffle", 1))
    loss = torch.zeros(())
    for _ in range(3):
        n = 0.1 * torch.randn(batch.x.shape, generator=generator)
        gaps = model(batch.x) - model(batch.x + n).detach()
        loss = loss + sum(g.norm() / m.norm() for g, m in zip(gaps, n, strict=True)) / (3 * 30)
    loss.backward()
    for name, p in model.named_parameters():
        assert p.grad is not None
        torch.testing.assert_close(weights(made)[name], start[name] - 0.1 * p.grad, rtol=1e-3, atol=1e-6)


class InPlace(nn.Module):
    """Begins with an activation that overwrites its input."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ReLU(inplace=True)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(inplace=True))
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.first(x)))


@pytest.mark.parametrize("method", [JIT(lr=0.05, max_drop=None), MUMis(lr=0.01, epochs=2, max_drop=None)])
def test_activations_in_place_do_no_harm(method: JIT | MUMis) -> None:
    torch.manual_seed(0)
    problem = toy_problem(InPlace())
    before = problem.forget.inputs().clone()
    made = run(method, problem).model
    assert torch.equal(problem.forget.inputs(), before)
    assert not torch.equal(weights(made)["head.weight"], weights(problem.model)["head.weight"])


def test_sensitivities_against_the_jacobian() -> None:
    torch.manual_seed(0)
    model, (images, labels) = ToyNet(batchnorm=False), toy_images(3, 0)
    others = (labels + 1) % 4
    own, other = sensitivities(model, images, labels, others)
    for i in range(3):
        jacobian = torch.autograd.functional.jacobian(lambda x: model(x[None])[0], images[i])
        assert float(own[i].detach()) == pytest.approx(float(jacobian[labels[i]].square().sum()), rel=1e-4)
        assert float(other[i].detach()) == pytest.approx(float(jacobian[others[i]].square().sum()), rel=1e-4)


def test_mu_mis_of_a_linear_model_by_hand() -> None:
    """f_c(x) = w_c . x: the sensitivity is |w_c|^2, so a step is w_y (1 - 2 lr) and w_k (1 + 2 lr)."""
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 4.0], [1.0, 0.0]]))
    own, other = sensitivities(model, torch.ones(1, 2), torch.tensor([0]), torch.tensor([1]))
    assert (own.item(), other.item()) == (25.0, 1.0)
    (own - other).mean().backward()
    assert model.weight.grad is not None
    assert model.weight.grad.tolist() == [[6.0, 8.0], [-2.0, 0.0]]


def test_mu_mis_lowers_the_own_sensitivity_and_stops_by_it() -> None:
    problem = toy_problem()
    free = run(MUMis(lr=0.02, epochs=8, until=0.0, batch_size=8, max_drop=None), problem)
    own = [row["own_sensitivity"] for row in free.history]
    assert own[-1] < own[0]
    part = own[3] / own[0] + 1e-6
    stopped = run(MUMis(lr=0.02, epochs=8, until=part, batch_size=8, max_drop=None), problem)
    assert stopped.status == "reached"
    assert len(stopped.history) == next(i for i, value in enumerate(own, 1) if value <= part * own[0])
