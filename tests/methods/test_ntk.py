"""The kernel and its products against an explicit Jacobian; the shift against its formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import expunge
from expunge.core.errors import UsageError
from expunge.core.run import Run
from expunge.data.split import ResidentStore, Split
from expunge.methods.ntk import step_scale
from expunge.numerics import tangent_kernel as tangent
from expunge.numerics.tangent_kernel import gram_matrix, product
from expunge.testing.conformance import RECIPE
from expunge.testing.toys import toy_problem

from .test_fisher import CLASSES, data, model


def jacobian(net: nn.Module, x: Tensor) -> Tensor:
    """(M, P): one row per sample and class, one backward pass each."""
    rows = []
    for sample in x:
        for c in range(CLASSES):
            gradients = torch.autograd.grad(net(sample[None])[0, c], list(net.parameters()))
            rows.append(torch.cat([g.flatten() for g in gradients]))
    return torch.stack(rows)


def parts(count: int) -> list[Split]:
    whole = data(count)
    return [whole.take(whole.index[:-2]), whole.take(whole.index[-2:])]


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(4), nn.LayerNorm(4)], ids=["capture", "torch.func"])
@pytest.mark.parametrize("way", ["chosen", "rows", "pairs", "small"])
def test_kernel_equals_the_explicit_one(norm: nn.Module, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way in ("rows", "pairs"):
        monkeypatch.setattr(tangent, "pairs_are_cheaper", lambda inner, g: way == "pairs")
        monkeypatch.setattr(tangent, "_keeps_rows", lambda record, out: False)
    if way == "small":
        monkeypatch.setattr(tangent, "BATCH", 2)
    net, splits = model(norm), parts(6)
    explicit = jacobian(net, torch.cat([s.inputs() for s in splits]))
    memory = 0.0095 if way == "small" else 900.0
    kernel = gram_matrix(net, splits, Run(), memory=memory)
    if way == "small":
        first = splits[0].inputs()[:1]
        plan = list(
            tangent.groups(
                tangent.GradientCapture(net, first), first, 18, tangent.COLLECTED * (memory * 2**20 / 4 - 3 * 18**2)
            )
        )
        pieces = [piece for group in plan for piece in group]
        assert len(plan) > 1
        assert len(pieces) > len({piece.name for piece in pieces}), "a layer is cut"
    assert torch.allclose(kernel, explicit @ explicit.T, rtol=1e-5, atol=1e-8)


def test_product_equals_the_explicit_one() -> None:
    net, splits = model(nn.BatchNorm1d(4)), parts(6)
    explicit = jacobian(net, torch.cat([s.inputs() for s in splits]))
    v = torch.randn(len(explicit), generator=torch.Generator().manual_seed(0)).double()
    found = torch.cat([value.flatten() for value in product(net, splits, v, Run()).values()])
    assert torch.allclose(found, explicit.T @ v, rtol=1e-5, atol=1e-8)


def test_scale_is_the_same_formula_for_either_sign() -> None:
    shift = {"w": torch.tensor([3.0, 4.0]).double()}
    for sign in (1.0, -1.0):
        # cos = sign * 3/5, ||e|| = 2: k = 5 + 2 * 0.6 * 2
        assert step_scale(shift, {"w": torch.tensor([sign * 2.0, 0.0]).double()}) == pytest.approx((5 + 2.4) / 5)
    assert step_scale({"w": torch.zeros(2)}, {"w": torch.ones(2)}) == 0


def test_shift_of_the_weights_equals_the_closed_form() -> None:
    problem, ridge = toy_problem(forget_class=1), 0.3
    result = expunge.unlearn(problem.model, **_given(problem), method="ntk", ridge=ridge)
    net = problem.model.double().eval()
    x = torch.cat([problem.retain.inputs(), problem.forget.inputs()]).double()
    y = torch.cat([problem.retain.y, problem.forget.y])
    classes = int(net(x[:1]).shape[1])
    gradients = [torch.autograd.grad(net(s[None])[0, c], list(net.parameters())) for s in x for c in range(classes)]
    columns = torch.stack([torch.cat([g.flatten() for g in row]) for row in gradients]).T  # G (P, M)
    residual = (net(x).softmax(1) - nn.functional.one_hot(y, classes)).detach().flatten()

    def optimum(count: int) -> Tensor:
        g, r = columns[:, : count * classes], residual[: count * classes]
        return -g @ torch.linalg.solve(g.T @ g + count * ridge * torch.eye(len(r)).double(), r)

    start = torch.cat([problem.initial[name].double().flatten() for name, _ in net.named_parameters()])
    before = torch.cat([p.detach().flatten() for p in net.parameters()])
    shift = optimum(len(problem.retain)) - optimum(len(x))
    rest = before - start - optimum(len(problem.retain))
    cosine = (shift @ rest) / (shift.norm() * rest.norm())
    expected = before + (shift.norm() + 2 * cosine.abs() * rest.norm()) / shift.norm() * shift
    found = torch.cat([p.detach().double().flatten() for p in result.model.parameters()])
    assert float((found - expected).norm() / (expected - before).norm()) < 1e-3


def test_what_it_cannot_do_is_said() -> None:
    problem = toy_problem(forget_class=1)
    with pytest.raises(UsageError, match="columns"):
        expunge.unlearn(problem.model, **_given(problem), method="ntk", columns=10)
    with pytest.raises(UsageError, match="initial"):
        expunge.unlearn(problem.model, **{**_given(problem), "initial": None}, method="ntk", ridge=0.1)
    with pytest.raises(UsageError, match="ridge"):
        expunge.unlearn(problem.model, **_given(problem), method="ntk")
    with pytest.raises(UsageError, match="memory"):
        expunge.unlearn(problem.model, **_given(problem), method="ntk", ridge=0.1, memory=0.5)


def _given(problem: Any) -> dict[str, Any]:
    return {
        "forget": problem.forget,
        "retain": problem.retain,
        "recipe": RECIPE,
        "initial": problem.initial,
        "device": "cpu",
    }


def test_data_of_one_store_and_of_two_give_the_same_kernel() -> None:
    net = model(nn.BatchNorm1d(4))
    x = data(4).inputs()
    apart = []
    for part in (x[:2], x[2:]):
        store = ResidentStore(part, torch.arange(2))
        store.prepare = lambda raw: raw  # type: ignore[method-assign]
        apart.append(Split.whole(store))
    together = gram_matrix(net, [data(4)], Run())
    assert torch.allclose(gram_matrix(net, apart, Run()), together)
