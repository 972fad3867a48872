"""L2UL from its equations and the conformance list of its specification (section 11)."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import expunge
from expunge.core.errors import AccessError, UsageError
from expunge.core.run import Run
from expunge.methods import METHODS
from expunge.methods.problem import restrict
from expunge.numerics.attack import L2PGD, PixelSpace, wrong_targets
from expunge.numerics.importance import ImportancePull, importance, scaled
from expunge.testing.conformance import same, weights
from expunge.testing.toys import ToyNet, ToyProblem, toy_problem
from expunge.training.recipe import Recipe

BOX = PixelSpace(torch.zeros(()), torch.ones(()), 0.0, 1.0)


def attack(net: nn.Module, x: Tensor, t: Tensor, **settings: Any) -> Tensor:
    return L2PGD(**{"eps": 1.0, "step": 0.1, "iterations": 10, **settings}).attack(net, x, t, BOX, seed=3)[0]


def slow_attack(net: nn.Module, x: Tensor, start: Tensor, t: int, eps: float, a: float, iterations: int) -> Tensor:
    """One image at a time, straight from the specification, with gradients of everything."""
    d = start - x
    d = d * min(1.0, eps / float(d.norm()))
    d = (x + d).clamp(0, 1) - x
    for _ in range(iterations):
        d = d.detach().requires_grad_(True)
        F.cross_entropy(net((x + d)[None]), torch.tensor([t])).backward()
        g = d.grad
        d = d.detach() - a * g / max(float(g.norm()), 1e-6)
        d = (x + d).clamp(0, 1) - x
        d = d * min(1.0, eps / float(d.norm()))
    return (x + d).clamp(0, 1)


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return ToyNet().eval()


def images(count: int = 5) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_attack_equals_a_loop_over_single_images(net: nn.Module) -> None:
    x, t = images(3), torch.tensor([[0, 1, 2], [3, 2, 1]])
    settings = L2PGD(eps=1.0, step=0.1, iterations=8)
    found = attack(net, x, t, iterations=8)
    for restart in range(2):
        starts = settings._uniform(x, BOX, 3, restart)
        for i in range(3):
            expected = slow_attack(net, x[i], starts[i], int(t[restart, i]), 1.0, 0.1, 8)
            assert torch.allclose(found[restart * 3 + i], expected.detach(), atol=1e-5)


def test_attack_stays_in_ball_and_box_and_leaves_the_model_alone(net: nn.Module) -> None:
    x, t = images(), wrong_targets(torch.arange(5) % 4, 4, 3, seed=0)
    net.train()
    before = weights(net)
    found = attack(net, x, t)
    assert net.training
    assert same(before, weights(net))
    assert all(p.grad is None for p in net.parameters())
    gap = (found - x.repeat(3, 1, 1, 1)).flatten(1).norm(dim=1)
    assert float(gap.max()) <= 1 + 1e-4
    assert 0 <= float(found.min()) <= float(found.max()) <= 1


@pytest.mark.parametrize("early_stop", [False, True])
def test_the_batch_size_changes_nothing(net: nn.Module, early_stop: bool) -> None:
    x, t = images(), wrong_targets(torch.arange(5) % 4, 4, 3, seed=0)
    whole = attack(net, x, t, batch=64, early_stop=early_stop)
    for batch in (1, 4, 7):
        assert torch.allclose(attack(net, x, t, batch=batch, early_stop=early_stop), whole, atol=1e-5)


def test_early_stop_keeps_what_was_reached(net: nn.Module) -> None:
    x, t = images(), wrong_targets(torch.arange(5) % 4, 4, 3, seed=0)
    settings = {"eps": 4.0, "iterations": 60}
    _, full = L2PGD(**settings).attack(net, x, t, BOX, 0)  # type: ignore[arg-type]
    _, early = L2PGD(**settings, early_stop=True).attack(net, x, t, BOX, 0)  # type: ignore[arg-type]
    assert float(early.float().mean()) >= float(full.float().mean()) - 1e-6


def test_attack_on_a_linear_model_by_hand() -> None:
    """Two pixels, two classes: the gradient direction never changes, so one step goes straight to it."""
    net = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))  # raise pixel 0 for class 0
    x = torch.tensor([[0.5, 0.5]])
    start = L2PGD()._uniform(x, BOX, 3, 0)
    d = start - x
    d = d * min(1.0, 0.2 / float(d.norm()))
    d = d + torch.tensor([[0.1, 0.0]])
    d = d * min(1.0, 0.2 / float(d.norm()))
    assert torch.allclose(attack(net, x, torch.tensor([[0]]), eps=0.2, iterations=1), x + d, atol=1e-6)


def test_box_and_budget_are_in_pixels_where_data_are_normalised() -> None:
    pixels = images()
    mean, std = torch.tensor(0.3), torch.tensor(0.2)
    space = PixelSpace.of((pixels - mean) / std, (mean, std))
    assert (space.low, space.high) == (0.0, 1.0)
    assert torch.allclose(space.pixels(space.seen(pixels)), pixels, atol=1e-6)
    rows = PixelSpace.of(torch.tensor([[-3.0, 7.0]]), None)
    assert (rows.low, rows.high) == (-3.0, 7.0)


def test_targets_are_wrong_classes_and_the_authors_draw_has_its_odds() -> None:
    labels = torch.arange(10)
    uniform = wrong_targets(labels, 10, 4000, seed=0)
    assert not bool((uniform == labels).any())
    assert float((uniform[:, 3] == 5).float().mean()) == pytest.approx(1 / 9, abs=0.02)
    authors = wrong_targets(labels, 10, 4000, seed=0, sampler="authors")
    assert float((authors[:, 3] == 5).float().mean()) == pytest.approx(0.2, abs=0.02)
    assert float((authors[:, 5] == 5).float().mean()) == pytest.approx(0.1, abs=0.02)
    first = wrong_targets(torch.tensor([70]), 100, 4000, seed=0, sampler="authors_first10")
    assert (int(first.min()), int(first.max())) == (0, 9)
    three = wrong_targets(torch.tensor([1]), 3, 6000, seed=0, sampler="authors")
    assert float((three == 1).float().mean()) == pytest.approx(1 / 3, abs=0.03)


def test_importance_of_two_batches_by_hand() -> None:
    problem = toy_problem(ToyNet(batchnorm=False), forget_class=1)
    net, split = copy.deepcopy(problem.model), problem.forget.take(problem.forget.index[:5])
    found = importance(copy.deepcopy(net), split, Run(), batch_size=3, batchnorm="frozen")
    total = torch.zeros_like(net.head.weight)
    for x in split.inputs().split(3):
        net.zero_grad()
        net(x).norm(dim=1).mean().backward()
        total += net.head.weight.grad.abs() * len(x)
    assert torch.allclose(found["head.weight"], 1 - scaled(total / 5), atol=1e-5)
    assert all(0 <= float(v.min()) <= float(v.max()) <= 1 for v in found.values())
    alone = importance(copy.deepcopy(net), split, Run(), batch_size=1, batchnorm="frozen")
    each = importance(copy.deepcopy(net), split, Run(), batch_size=3, per_sample=True)
    assert all(torch.allclose(alone[name], each[name], atol=1e-5) for name in alone)


def test_a_constant_tensor_is_free_of_nan_and_held() -> None:
    assert torch.equal(1 - scaled(torch.full((3,), 0.7)), torch.ones(3))


def test_pull_is_the_gradient_of_the_penalty_and_zero_at_the_start() -> None:
    net = nn.Linear(3, 2)
    omega = {name: torch.rand_like(p) for name, p in net.named_parameters()}
    pull = ImportancePull(net, omega, 0.7)
    start = net.weight.detach().clone()
    net(torch.zeros(1, 3)).sum().backward()
    net.weight.grad.zero_()
    pull.add_gradient()
    assert float(net.weight.grad.abs().max()) == 0
    with torch.no_grad():
        net.weight.add_(0.5)
    pull.add_gradient()
    assert torch.allclose(net.weight.grad, 0.7 * omega["weight"] * (net.weight.detach() - start))


def forget(problem: ToyProblem, method: str, **options: Any) -> expunge.Result:
    given = {"forget": problem.forget, "method": method, "device": "cpu", "lr": 0.02, **options}
    if method == "l2ul-oracle":
        given["retain"] = problem.retain
    return expunge.unlearn(problem.model, **given)


FAST: dict[str, Any] = {"examples": 4, "iterations": 20, "step": 0.5}


@pytest.mark.parametrize("goal", ["misclassify", "relabel"])
@pytest.mark.parametrize("method", ["l2ul", "l2ul-plain", "l2ul-oracle"])
def test_the_goal_is_reached_with_the_forget_set_alone(method: str, goal: str) -> None:
    problem = toy_problem(forget_class=1)
    few = copy.copy(problem)
    few.forget = problem.forget.take(problem.forget.index[:6])
    result = forget(few, method, goal=goal, limit=200, **(FAST if method == "l2ul" else {}))
    assert result.status == "reached"
    said = result.model(few.forget.inputs()).argmax(1)
    assert not bool((said == 1).any())


def test_what_is_wrong_already_is_left_alone() -> None:
    problem = toy_problem(forget_class=1)
    problem.forget = problem.forget.with_labels((problem.forget.store.labels + 1) % 4)
    result = forget(problem, "l2ul", **FAST)
    assert result.status == "already"
    assert same(weights(result.model), weights(problem.model))
    assert result.history == []


def test_a_run_that_ends_at_its_limit_says_so() -> None:
    assert forget(toy_problem(forget_class=1), "l2ul", lr=1e-6, limit=2, **FAST).status == "limit"


def test_stops_in_the_middle_of_a_pass() -> None:
    problem = toy_problem(forget_class=1)
    problem.forget = problem.forget.take(problem.forget.index[:4])
    result = forget(problem, "l2ul", lr=0.5, batch_size=1, strength=0.0, **FAST)
    assert result.status == "reached"
    assert len(result.history) == 1
    assert result.details["steps"] < 16


def test_two_passes_per_step_move_batchnorm_as_two_batches_do() -> None:
    """new = 0.81 old + 0.09 stat(A) + 0.10 stat(F) with momentum 0.1."""
    problem = toy_problem(forget_class=1)
    problem.forget = problem.forget.take(problem.forget.index[:4])
    old = problem.model.norm.running_mean.clone()
    options = {"examples": 4, "iterations": 0, "limit": 1, "lr": 1e-9, "strength": 0.0, "batchnorm": "train"}
    result = forget(problem, "l2ul", **options)
    x = problem.forget.inputs()
    space = PixelSpace.of(x, None)
    targets = wrong_targets(problem.forget.y, 4, 4, seed=0)
    adversarial, _ = L2PGD(iterations=0).attack(problem.model, space.pixels(x), targets, space, seed=0)
    with torch.no_grad():
        stat_a = problem.model.conv(adversarial).mean((0, 2, 3))
        stat_f = problem.model.conv(x).mean((0, 2, 3))
    expected = 0.81 * old + 0.09 * stat_a + 0.10 * stat_f
    assert torch.allclose(result.model.norm.running_mean, expected, atol=1e-5)


def test_no_other_data_can_be_reached() -> None:
    assert METHODS.card("l2ul").needs.forget_set_only
    problem = toy_problem(forget_class=1)
    result = expunge.unlearn(
        problem.model, forget=problem.forget, retain=problem.retain, method="l2ul", limit=1, device="cpu", **FAST
    )
    assert result.needs.retain == "none"
    splits = {"forget": problem.forget, "retain": problem.retain}
    handed = restrict(problem.model, splits, result.needs, 4, Recipe(), None, 0)
    with pytest.raises(AccessError):
        _ = handed.retain


def test_relabelling_takes_given_classes_and_checks_them() -> None:
    problem = toy_problem(forget_class=1)
    problem.forget = problem.forget.take(problem.forget.index[:3])
    result = forget(problem, "l2ul", goal="relabel", targets=(0, 2, 3), limit=300, lr=0.05, **FAST)
    assert result.model(problem.forget.inputs()).argmax(1).tolist() == [0, 2, 3]
    with pytest.raises(UsageError, match="2 targets for 3 samples"):
        forget(problem, "l2ul", goal="relabel", targets=(0, 2))
    with pytest.raises(UsageError, match=r"classes 0\.\.3"):
        forget(problem, "l2ul", goal="relabel", targets=(0, 2, 9))


def test_mistakes_are_repaired_towards_their_own_labels() -> None:
    problem = toy_problem(forget_class=1)
    few = problem.forget.take(problem.forget.index[:3])
    problem.forget = few.with_labels((few.store.labels + 1) % 4)  # as if class 2 were right
    result = forget(problem, "l2ul", goal="relabel", targets="labels", limit=300, lr=0.05, **FAST)
    assert result.status == "reached"
    assert result.model(problem.forget.inputs()).argmax(1).tolist() == [2, 2, 2]


def test_methods_that_are_compared_share_one_attack_and_both_count_its_seconds(tmp_path: Path) -> None:
    problem = toy_problem(forget_class=1)
    problem.forget = problem.forget.take(problem.forget.index[:4])
    plain = forget(problem, "l2ul", limit=1, strength=0.0, cache=tmp_path, **FAST)
    kept = list(tmp_path.glob("attacks/*.safetensors"))
    assert len(kept) == 1
    again = forget(problem, "l2ul", limit=1, strength=0.0, cache=tmp_path, **FAST)
    fresh = forget(problem, "l2ul", limit=1, strength=0.0, **FAST)
    assert same(weights(plain.model), weights(again.model))
    assert same(weights(plain.model), weights(fresh.model))
    assert again.stages["attack"] >= 0.5 * plain.stages["attack"]
    assert again.seconds >= again.stages["attack"]
    forget(problem, "l2ul", limit=1, cache=tmp_path, **FAST)  # with importance: the same attack
    assert list(tmp_path.glob("attacks/*.safetensors")) == kept
    forget(problem, "l2ul", limit=1, cache=tmp_path, eps=2.0, **FAST)
    assert len(list(tmp_path.glob("attacks/*.safetensors"))) == 2
    kept[0].write_bytes(b"torn")
    assert same(weights(forget(problem, "l2ul", limit=1, strength=0.0, cache=tmp_path, **FAST).model),
                weights(plain.model))  # fmt: skip


def test_attack_agrees_with_a_public_library(net: nn.Module) -> None:
    """Where no pixel meets the box, box-then-ball and ball-then-box are the same."""
    foolbox = pytest.importorskip("foolbox", reason="an independent implementation, installed by hand")
    x, t = 0.4 + 0.2 * images(), torch.tensor([1, 2, 3, 0, 1])
    settings = L2PGD(eps=0.3, step=0.05, iterations=8)
    ours = settings._descend(net, x, x.clone(), t, BOX)
    theirs = foolbox.attacks.L2ProjectedGradientDescentAttack(abs_stepsize=0.05, steps=8, random_start=False)
    criterion = foolbox.criteria.TargetedMisclassification(t)
    wrapped = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    assert torch.allclose(theirs.run(wrapped, x, criterion, epsilon=0.3), ours, atol=1e-4)
