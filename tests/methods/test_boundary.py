"""Boundary Shrink and Expand: the search by hand, the shadow class against an explicit wider layer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import expunge
from expunge.core.errors import UsageError
from expunge.core.needs import Needs
from expunge.core.run import Run
from expunge.data.split import Normalisation, ResidentStore, Split
from expunge.methods.boundary import BoundaryShrink, logit_layer, neighbours, pixel_space, shadow_row, widened
from expunge.methods.problem import Problem
from expunge.numerics.attack import PixelSpace
from expunge.testing.conformance import same, weights
from expunge.testing.toys import ToyNet, toy_problem
from expunge.training.inference import predict


def plane() -> nn.Linear:
    """Three classes over two inputs in [0, 1]: logits x1, x2, and 0.3."""
    layer = nn.Linear(2, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
        layer.bias.copy_(torch.tensor([0.0, 0.0, 0.3]))
    return layer


POINTS = torch.tensor([[0.60, 0.50], [0.50, 0.20], [0.95, 0.05]])  # all of class 0


def points() -> Split:
    return Split.whole(ResidentStore(POINTS, torch.tensor([0, 0, 0]), classes=["a", "b", "c"]))


def relabelled(**options: Any) -> tuple[list[int], float]:
    """The new labels, and the share that crossed the boundary."""
    problem = Problem(
        model=plane(), num_classes=3, input_shape=(2,), needs=Needs(forget="labels"), _splits={"forget": points()}
    )
    run = Run()
    labels = BoundaryShrink(**options).nearest(problem, run)
    return labels.tolist(), run.details["crossed"]


def test_one_step_is_fgsm_and_stays_in_the_box() -> None:
    space = PixelSpace(torch.zeros(()), torch.ones(()), 0.0, 1.0)
    moved = neighbours(plane(), POINTS, torch.tensor([0, 0, 0]), space, bound=0.1, step=0.1, iterations=1)
    # The loss of class 0 falls with x1 and rises with x2, everywhere.
    assert torch.allclose(moved, torch.tensor([[0.50, 0.60], [0.40, 0.30], [0.85, 0.15]]))
    wide = neighbours(plane(), POINTS, torch.tensor([0, 0, 0]), space, bound=0.7, step=0.7, iterations=1)
    assert torch.allclose(wide, torch.tensor([[0.0, 1.0], [0.0, 0.9], [0.25, 0.75]]))


def test_many_steps_stay_within_the_bound() -> None:
    space = PixelSpace(torch.zeros(()), torch.ones(()), 0.0, 1.0)
    moved = neighbours(plane(), POINTS, torch.tensor([0, 0, 0]), space, bound=0.1, step=0.04, iterations=9)
    assert torch.allclose((moved - POINTS).abs(), torch.tensor([[0.1, 0.1], [0.1, 0.1], [0.1, 0.1]]), atol=1e-6)


def test_labels_are_those_of_the_neighbours_and_never_the_own_one() -> None:
    # Neighbours (.5, .6): b wins;  (.4, .3): a wins, b and c (.3 each) share the next place;  (.85, .15): c is next.
    answers, crossed = relabelled(bound=0.1)
    assert (answers[0], answers[2]) == (1, 2)
    assert answers[1] in (1, 2)
    assert crossed == pytest.approx(1 / 3)


def test_a_search_of_many_short_steps_goes_less_far_than_its_bound() -> None:
    # (.6, .5) needs more than .05 to cross; three steps of .02 reach it, two do not.
    assert relabelled(bound=0.5, step=0.02, iterations=2, keep_uncrossed=True)[0] == [0, 0, 0]
    assert relabelled(bound=0.5, step=0.02, iterations=3, keep_uncrossed=True)[0] == [1, 0, 0]


def test_shrink_trains_towards_the_new_labels() -> None:
    result = expunge.unlearn(plane(), forget=points(), method="boundary-shrink", epochs=2, lr=0.1, device="cpu")
    first = F.cross_entropy(plane()(POINTS), torch.tensor(relabelled()[0]))
    assert result.history[0]["forget_loss"] == pytest.approx(float(first.detach()))
    assert result.history[1]["forget_loss"] < result.history[0]["forget_loss"]


def test_the_published_reading_keeps_samples_that_did_not_cross() -> None:
    answers, crossed = relabelled(bound=0.1, keep_uncrossed=True)
    assert answers == [1, 0, 0]
    assert crossed == pytest.approx(1 / 3)


def test_pixels_are_found_through_the_normalisation_whatever_the_batches() -> None:
    raw = torch.rand(2500, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    raw[2400] = 3.0
    store = ResidentStore(raw, torch.zeros(2500).long(), normalisation=Normalisation((0.5,), (0.25,)))
    inside = pixel_space(Split.whole(store).take(range(2000)), Run())
    assert (inside.low, inside.high) == (0.0, 1.0)
    assert torch.allclose(inside.pixels(store.prepare(raw[:5])), raw[:5], atol=1e-6)
    assert pixel_space(Split.whole(store), Run()).high == pytest.approx(3.0)


def explicit(layer: nn.Linear, row: nn.Linear) -> nn.Linear:
    wide = nn.Linear(layer.in_features, layer.out_features + 1)
    with torch.no_grad():
        wide.weight.copy_(torch.cat([layer.weight, row.weight]))
        wide.bias.copy_(torch.cat([layer.bias, row.bias]))
    return wide


def test_a_step_towards_the_shadow_class_equals_that_of_a_wider_layer() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(5, 3), torch.randn(7, 5)
    row = shadow_row(layer, seed=1)
    wide = explicit(layer, row)
    target = torch.full((7,), 3)
    F.cross_entropy(wide(x), target).backward()
    with widened(layer, row):
        assert torch.allclose(layer(x), wide(x))
        F.cross_entropy(layer(x), target).backward()
    assert torch.allclose(layer.weight.grad, wide.weight.grad[:3], atol=1e-7)
    assert torch.allclose(row.bias.grad, wide.bias.grad[3:], atol=1e-7)
    assert layer(x).shape == (7, 3)


def test_expand_by_hand_from_the_first_to_the_last_step() -> None:
    net, options = nn.Sequential(plane()), {"epochs": 4, "lr": 0.1, "momentum": 0.5, "batch_size": 3}
    result = expunge.unlearn(net, forget=points(), method="boundary-expand", device="cpu", **options)
    wide = explicit(plane(), shadow_row(plane(), Run(seed=0).seed_for("shadow")))
    optimizer = torch.optim.SGD(wide.parameters(), lr=0.1, momentum=0.5)
    for _ in range(4):
        optimizer.zero_grad()
        F.cross_entropy(wide(POINTS), torch.tensor([3, 3, 3])).backward()
        optimizer.step()
    assert torch.allclose(result.model[0].weight, wide.weight[:3], atol=1e-6)
    assert torch.allclose(result.model[0].bias, wide.bias[:3], atol=1e-6)


def test_expand_reads_no_label_and_returns_what_it_was_given() -> None:
    problem = toy_problem(ToyNet(batchnorm=False), forget_class=1)
    options = {"method": "boundary-expand", "epochs": 8, "lr": 0.05, "batch_size": 8, "device": "cpu"}
    blind = expunge.unlearn(problem.model, forget=problem.forget.without_labels(), **options)
    seeing = expunge.unlearn(problem.model, forget=problem.forget, **options)
    assert blind.needs.label_free
    assert same(weights(blind.model), weights(seeing.model))
    assert blind.history[-1]["forget_loss"] < 0.5 * blind.history[0]["forget_loss"]
    assert not any(module._forward_hooks for module in blind.model.modules())
    known = (predict(blind.model, problem.forget).argmax(1) == 1).float().mean()
    assert float(known) < 0.5


class Pooled(nn.Module):
    """Logits are the means of a 1x1 convolution's maps, as in All-CNN."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(1, 4, 3)
        self.maps = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.maps(torch.relu(self.body(x))).mean((2, 3))


def test_expand_widens_a_convolution_too() -> None:
    problem = toy_problem(Pooled(), forget_class=1)
    result = expunge.unlearn(problem.model, forget=problem.forget, method="boundary-expand", lr=0.1, device="cpu")
    assert result.model.maps.weight.shape == (4, 4, 1, 1)
    assert result.history[-1]["forget_loss"] < result.history[0]["forget_loss"]


def test_the_shadow_row_has_the_spread_of_xaviers_rule() -> None:
    row = shadow_row(nn.Linear(4000, 10), seed=0)
    assert float(row.weight.detach().std()) == pytest.approx((2 / (4000 + 11)) ** 0.5, rel=0.1)
    assert float(row.bias.detach().abs().sum()) == 0
    assert torch.equal(row.weight, shadow_row(nn.Linear(4000, 10), seed=0).weight)


class Scaled(nn.Module):
    """What follows the last layer has one factor per class."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(64, 4)
        self.register_buffer("scale", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        logits = self.last(x.flatten(1))
        return torch.cat([logits[:, :4] * self.scale], 1)


class Normed(nn.Module):
    """No linear layer at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 4)
        self.last = nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x.flatten(1)))


@pytest.mark.parametrize(("net", "words"), [(Scaled(), "4 instead of 5 outputs"), (Normed(), "one row per class")])
def test_models_that_no_output_can_be_added_to_are_refused(net: nn.Module, words: str) -> None:
    problem = toy_problem(copy.deepcopy(net), forget_class=1, epochs=1)
    with pytest.raises(UsageError, match=words):
        expunge.unlearn(problem.model, forget=problem.forget, method="boundary-expand", device="cpu")


def test_the_layer_of_logits_is_the_last_one_of_a_compound_head() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4)))
    assert logit_layer(net, torch.rand(2, 1, 8, 8), 4) is net[3][1]
