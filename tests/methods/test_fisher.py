"""The Fisher diagonal against a loop over single samples and classes; the noise rule on tensors filled by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import expunge
from expunge.core.run import Run
from expunge.data.split import ResidentStore, Split
from expunge.methods import METHODS
from expunge.methods.fisher import Fisher, posterior, whole_classes
from expunge.methods.problem import restrict
from expunge.numerics.curvature import all_classes, fisher_diagonal
from expunge.numerics.gradient_capture import GradientCapture, ReusableBuffer, patches
from expunge.testing.toys import TiedNet, toy_problem
from expunge.training.recipe import Recipe

CLASSES = 3


class Mixed(nn.Module):
    """Strided, dilated, grouped and 1 x 1 convolutions, BatchNorm, in-place ReLU, a residual, a linear head."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.grouped = nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2, bias=False)
        self.point = nn.Conv2d(4, 4, 1)
        self.last = norm
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.first(x)))
        x = x + self.point(self.grouped(x))
        return self.head(self.last(x.mean((2, 3))))


def model(norm: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    net = Mixed(norm).double()
    with torch.no_grad():
        for _ in range(3):
            net(torch.randn(8, 2, 6, 6, dtype=torch.float64))
    return net.eval()


def data(count: int = 7) -> Split:
    x = torch.randn(count, 2, 6, 6, generator=torch.Generator().manual_seed(1)).double()
    store = ResidentStore(x, torch.arange(count) % CLASSES)
    store.prepare = lambda raw: raw  # type: ignore[method-assign]  # keep float64
    return Split.whole(store)


def slow(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """One sample, one class at a time."""
    names = [name for name, _ in net.named_parameters()]
    total = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    for sample in x:
        p = net(sample[None]).softmax(1)[0].detach()
        for y in range(CLASSES):
            loss = F.cross_entropy(net(sample[None]), torch.tensor([y]))
            for name, gradient in zip(
                names, torch.autograd.grad(loss, list(net.parameters()), materialize_grads=True), strict=True
            ):
                total[name] += p[y] * gradient.square()
    return {name: value / len(x) for name, value in total.items()}


NETS = {
    "every layer capture": nn.BatchNorm1d(4),
    "one layer left to torch.func": nn.LayerNorm(4),
}


@pytest.mark.parametrize("memory", [64.0, 1e-3], ids=["one batch", "sample by sample"])
@pytest.mark.parametrize("norm", NETS.values(), ids=NETS.keys())
def test_exact_diagonal_equals_the_loop(norm: nn.Module, memory: float) -> None:
    net, split = model(norm), data()
    expected = slow(net, split.inputs())
    found = fisher_diagonal(net, split, Run(), memory=memory)
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-5, atol=1e-12), name


def test_what_is_left_to_torch_func() -> None:
    assert GradientCapture(model(nn.BatchNorm1d(4)), data(1).inputs()).rest == []
    assert GradientCapture(model(nn.LayerNorm(4)), data(1).inputs()).rest == ["last.weight", "last.bias"]
    tied = GradientCapture(TiedNet().eval(), torch.randn(1, 1, 8, 8))
    assert set(tied.rest) == {"first.weight", "first.bias", "second.bias"}


class Reused(nn.Module):
    """The weight of a layer serves a second time, outside it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(72, 3), nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.head(self.first(x.flatten(1))), self.head.weight)


class Aside(nn.Module):
    """A layer that runs and does not matter."""

    def __init__(self) -> None:
        super().__init__()
        self.aside, self.head = nn.Linear(72, 2), nn.Linear(72, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        self.aside(x.flatten(1))
        return self.head(x.flatten(1))


class Centred(nn.Conv2d):
    """A subclass whose output is not that of its weight."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


def frozen_body() -> nn.Module:
    body = nn.Linear(72, 3).requires_grad_(False)
    return nn.Sequential(nn.Flatten(), body, nn.ReLU(), nn.Linear(3, CLASSES))


UNTAPPED = {
    "weight used again by a function": (Reused, ["head.weight", "head.bias"]),
    "layer that does not matter": (Aside, ["aside.weight", "aside.bias"]),
    "subclass of a convolution": (
        lambda: nn.Sequential(Centred(2, 3, 6), nn.Flatten(), nn.Linear(3, CLASSES)),
        ["0.weight", "0.bias"],
    ),
    "reparametrised weight, nothing capture": (
        lambda: nn.Sequential(nn.Flatten(), parametrizations.weight_norm(nn.Linear(72, CLASSES))),
        ["1.bias", "1.parametrizations.weight.original0", "1.parametrizations.weight.original1"],
    ),
    "frozen layer, which can be capture": (frozen_body, []),
}


@pytest.mark.parametrize(("build", "rest"), UNTAPPED.values(), ids=UNTAPPED.keys())
def test_layers_that_the_tap_would_get_wrong_are_left_to_torch_func(
    build: Callable[[], nn.Module], rest: list[str]
) -> None:
    torch.manual_seed(0)
    net, split = build().double().eval(), data(5)
    assert GradientCapture(net, split.inputs()[:1]).rest == rest
    found = fisher_diagonal(net, split, Run())
    for name, value in slow(net.requires_grad_(True), split.inputs()).items():
        assert torch.allclose(found[name], value, rtol=1e-5, atol=1e-12), name


def test_the_vectors_hold_the_covariance_of_the_gradients() -> None:
    p = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).mul(3).softmax(1)
    vectors = all_classes(p)
    assert vectors.shape == (6, 4, 5)  # one less than the classes
    covariance = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    assert torch.allclose(vectors.transpose(1, 2) @ vectors, covariance, atol=1e-6)
    sure = torch.eye(5)[[0, 1]] * (1 - 1e-9) + 2e-10
    assert all_classes(torch.cat([sure, p[:1]]))[:2].abs().max() < 1e-3  # hardly anything is left of sure samples
    two = torch.tensor([[0.5, 0.5, 0.0, 0.0, 0.0]])
    assert all_classes(two).shape == (1, 1, 5)  # the other directions have no variance


def test_inner_sum_is_the_variance_of_the_logit_jacobian() -> None:
    """sum_y p_y (dCE_y/dw)^2 = E_p[J^2] - (E_p[J])^2 with J the per-class Jacobian column (specification, 3.2)."""
    net, split = model(nn.BatchNorm1d(4)), data(1)
    x = split.inputs()
    p = net(x).softmax(1)[0].detach()
    jacobian = torch.stack([torch.autograd.grad(net(x)[0, c], net.head.weight)[0] for c in range(CLASSES)])
    weights = p[:, None, None]
    expected = (weights * jacobian.square()).sum(0) - (weights * jacobian).sum(0).square()
    assert torch.allclose(fisher_diagonal(net, split, Run())["head.weight"], expected, rtol=1e-5)


def test_sampled_diagonal_converges_to_the_exact_one() -> None:
    net, split = model(nn.BatchNorm1d(4)), data()
    exact = fisher_diagonal(net, split, Run())["head.weight"]
    draws = [fisher_diagonal(net, split, Run(seed=s), estimate="monte-carlo")["head.weight"] for s in range(200)]
    error = (torch.stack(draws).mean(0) - exact).norm() / exact.norm()
    assert float(error.detach()) < 0.15


def test_noise_rule_on_a_hidden_matrix() -> None:
    weight = torch.ones(2, 2)
    fisher = torch.tensor([[1.0, 3.0], [0.0, 1.0]]).double()
    mean, variance = posterior(weight, fisher, 1e-6, torch.empty(0, dtype=torch.long), in_head=False, is_norm=False)
    first = 1e-6 * (1 / (1 + 1e-8) + 1 / (3 + 1e-8)) / 2
    second = 1e-6 * (1e3 + 1 / (1 + 1e-8)) / 2
    assert torch.allclose(variance, torch.tensor([[first, first], [second, second]]).double())
    assert torch.equal(mean, weight.double())


def test_noise_rule_on_vectors_and_on_the_head() -> None:
    nobody = torch.empty(0, dtype=torch.long)
    _, bias = posterior(torch.zeros(4), torch.zeros(4), 1e-6, nobody, in_head=False, is_norm=True)
    assert torch.allclose(bias, torch.full((4,), 10 * 1e-6 * 1e3).double())
    _, head = posterior(torch.zeros(3, 2), torch.zeros(3, 2), 1e-6, nobody, in_head=True, is_norm=False)
    assert torch.allclose(head, torch.full((3, 2), 10 * 1e-6 * 1e2).double())
    mean, variance = posterior(
        torch.ones(3, 2), torch.zeros(3, 2), 1e-6, torch.tensor([1]), in_head=True, is_norm=False
    )
    assert mean[:, 0].tolist() == [1, 0, 1]
    assert variance[:, 0].tolist() == pytest.approx([1e-3, 1e-3, 1e-3])
    assert variance[1, 0] == pytest.approx(10 * 1e-4)


def test_whole_classes() -> None:
    assert whole_classes(torch.tensor([0, 2, 2]), 4).tolist() == [1, 3]


@pytest.mark.parametrize(("forget_class", "gone"), [(1, [1]), (None, [])])
def test_a_class_that_goes_whole_is_cut_from_the_head(forget_class: int | None, gone: list[int]) -> None:
    problem = toy_problem(forget_class=forget_class)
    result = expunge.unlearn(
        problem.model, forget=problem.forget, retain=problem.retain, method="fisher", alpha=1e-9, device="cpu"
    )
    assert result.details["whole_classes"] == gone
    if gone:
        assert float(result.model.head.weight[1].detach().abs().max()) < 0.5


@pytest.mark.parametrize("groups", [1, 2])
def test_patches_are_those_of_torch_with_channels_innermost(groups: int) -> None:
    layer = nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 3), groups=groups)
    a = torch.randn(5, 4, 9, 8)
    rows = F.unfold(a, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    expected = rows.view(5, groups, 4 // groups, 6, -1).permute(0, 1, 4, 3, 2).flatten(3)
    assert torch.equal(patches(layer, a), expected)
    assert torch.equal(patches(layer, a.to(memory_format=torch.channels_last), ReusableBuffer()), expected)


class FourChannels(nn.Module):
    """As many channels as there are classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


def test_tensors_by_shape_take_biases_along_and_by_module_do_not() -> None:
    problem = toy_problem(FourChannels(), epochs=0)
    splits = {"retain": problem.retain}
    handed = restrict(problem.model, splits, METHODS.card("fisher").needs, 4, Recipe(), None, 0)
    by_shape, by_module = (Fisher(tensors=way)._kinds(problem.model, handed, Run()) for way in ("shape", "module"))
    assert by_shape["conv.weight"] == (True, False)  # as many channels as there are classes
    assert by_shape["conv.bias"] == (True, True)
    assert by_module["conv.weight"] == by_module["conv.bias"] == (False, False)
    assert by_module["norm.weight"] == (False, True)
    assert by_module["head.weight"] == by_module["head.bias"] == (True, False)
