"""SAM and DualOptim: one step by hand, running statistics that stay, and optimisers that keep their own moments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import expunge
from expunge.core.errors import UsageError
from expunge.methods.neggrad import NegGrad, NegGradPlus
from expunge.methods.random_label import RandomLabel
from expunge.methods.salun import SalUn
from expunge.methods.sfr_on import SFROn
from expunge.testing.conformance import compare_cost, run, weights
from expunge.testing.toys import ToyNet, ToyProblem, toy_problem
from expunge.training.loop import sharp_step, step
from expunge.training.sharpness import sharp_gradients


def plain() -> ToyProblem:
    torch.manual_seed(0)
    problem = toy_problem(ToyNet(batchnorm=False))
    problem.model.zero_grad()
    return problem


def test_the_gradient_is_that_of_the_worst_point_of_a_quadratic() -> None:
    """L = w^2 a: gradient 2 a w; at w + rho w / |w| it is 2 a (w + rho w / |w|)."""
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 4.0]]))
    sharp_gradients(lambda: model.weight.square().sum().backward(), model, 0.5)
    assert model.weight.grad is not None
    torch.testing.assert_close(model.weight.grad, 2 * torch.tensor([[3.3, 4.4]]))
    torch.testing.assert_close(model.weight.detach(), torch.tensor([[3.0, 4.0]]))


def test_without_a_radius_it_is_the_ordinary_step_and_statistics_move_once() -> None:
    results = []
    for rho in (None, 0.0, 0.1):
        torch.manual_seed(0)
        model = ToyNet().train()
        x, y = torch.rand(16, 1, 8, 8), torch.arange(16) % 4
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        if rho is None:
            step(F.cross_entropy(model(x), y), model, optimizer)
        else:
            sharp_step(lambda model=model, x=x, y=y: F.cross_entropy(model(x), y), model, optimizer, rho=rho)
        results.append(weights(model))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    for name in ("norm.running_mean", "norm.running_var", "norm.num_batches_tracked"):
        assert torch.equal(results[1][name], results[2][name])
    assert not torch.equal(results[1]["head.weight"], results[2]["head.weight"])


def flat(model: nn.Module, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


def test_a_step_of_neggrad_plus_with_sam_and_two_optimisers_by_hand() -> None:
    values: dict[str, Any] = {"epochs": 1, "lr": 0.1, "alpha": 0.7, "clip": None, "max_drop": None}
    whole: dict[str, Any] = {"retain_batch_size": 1000, "forget_batch_size": 1000}
    made = run(NegGradPlus(sam_rho=0.05, dual_lr=0.01, **values, **whole), plain()).model
    problem = plain()
    model = problem.model.requires_grad_(True)
    adam = torch.optim.Adam(model.parameters(), lr=0.01)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    for split, weight, optimizer in ((problem.forget, -0.3, adam), (problem.retain, 0.7, sgd)):
        g = flat(model, weight * F.cross_entropy(model(split.inputs()), split.y))
        norm = torch.cat([one.flatten() for one in g]).norm()
        with torch.no_grad():
            for p, one in zip(model.parameters(), g, strict=True):
                p.add_(0.05 * one / norm)
        sharp = flat(model, weight * F.cross_entropy(model(split.inputs()), split.y))
        with torch.no_grad():
            for p, one, grad in zip(model.parameters(), g, sharp, strict=True):
                p.sub_(0.05 * one / norm)
                p.grad = grad
        optimizer.step()
    for name, value in weights(model).items():
        torch.testing.assert_close(weights(made)[name], value, rtol=1e-3, atol=1e-5)


ON_TOY: list[Any] = [
    NegGradPlus(epochs=2, retain_batch_size=16, forget_batch_size=8, alpha=0.7, lr=0.05, max_drop=None),
    RandomLabel(epochs=2, retain_batch_size=16, forget_batch_size=8, lr=0.05, max_drop=None),
    SFROn(epochs=2, retain_batch_size=16, forget_batch_size=8, lr=0.02, threshold=0.01, max_drop=None),
]


@pytest.mark.parametrize("chosen", ON_TOY, ids=lambda one: one.card.name)
def test_two_optimisers_and_sam_forget_a_class_and_state_their_cost(chosen: Any) -> None:
    kept = {name: getattr(chosen, name) for name in ("epochs", "lr", "retain_batch_size", "forget_batch_size")}
    kept |= {"alpha": 0.7} if isinstance(chosen, NegGradPlus) else {}
    kept |= {"threshold": 0.01} if isinstance(chosen, SFROn) else {}
    both = type(chosen)(sam_rho=0.02, dual_lr=2e-3, max_drop=None, **kept)
    problem = toy_problem()
    result = run(both, problem)
    with torch.no_grad():
        losses = [
            float(F.cross_entropy(m(problem.forget.inputs()), problem.forget.y)) for m in (problem.model, result.model)
        ]
        right = float((result.model(problem.retain.inputs()).argmax(1) == problem.retain.y).float().mean())
    assert losses[1] > losses[0]
    assert right > 0.8
    compare_cost(both, toy_problem())
    for one in (NegGrad(sam_rho=0.1, epochs=2, max_drop=None), SalUn(sam_rho=0.1, epochs=2, max_drop=None)):
        compare_cost(one, toy_problem())


def test_methods_that_cannot_take_the_options_up_refuse_them() -> None:
    for name, option in (("scrub", "dual_lr"), ("neggrad", "dual_lr"), ("ssd", "sam_rho"), ("retrain", "sam_rho")):
        with pytest.raises(UsageError, match=f"{name} has no option `{option}`"):
            expunge.method(name)(**{option: 0.1})
