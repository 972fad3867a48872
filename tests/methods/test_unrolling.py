"""Single-gradient unlearning: by hand, and where SGD is as linear as the derivation takes it to be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import expunge
from expunge.core.errors import UsageError
from expunge.data.split import ResidentStore, Split
from expunge.methods.base import make_method
from expunge.testing.conformance import same, weights
from expunge.testing.toys import toy_problem

SGD: dict[str, Any] = {
    "epochs": 3, "batch_size": 4, "optimizer": "sgd", "lr": 1e-3, "momentum": 0.0, "weight_decay": 0.0,
    "schedule": "constant",
}  # fmt: skip


def samples(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 5, generator=generator), torch.randint(3, (count,), generator=generator)


def split(x: Tensor, y: Tensor) -> Split:
    return Split.whole(ResidentStore(x, y, classes=["a", "b", "c"]))


def net(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(5, 3)


def gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """sum of grad CE over the samples, of the weight matrix."""
    return torch.autograd.grad(F.cross_entropy(model(x), y, reduction="sum"), model.weight)[0]


def unrolled(x: Tensor, y: Tensor, recipe: dict[str, Any], **options: Any) -> expunge.Result:
    return expunge.unlearn(
        net(7), forget=split(x, y), method="unrolling", initial=net(0), recipe=recipe, device="cpu", **options
    )


@pytest.mark.parametrize(
    ("options", "changes", "factor"),
    [
        ({}, {}, 3 * 1e-3 / 4),
        ({"total": "mean"}, {}, 3 * 1e-3 / 10),
        ({"scale": 5.0}, {}, 5 * 3 * 1e-3 / 4),
        ({}, {"momentum": 0.9}, 3 * 1e-3 / 4),
        ({"momentum": True}, {"momentum": 0.9}, 10 * 3 * 1e-3 / 4),
        ({}, {"schedule": "milestones", "milestones": [1], "decay": 0.5}, (1 + 0.5 + 0.5) * 1e-3 / 4),
    ],
)
def test_the_step_by_hand(options: dict[str, Any], changes: dict[str, Any], factor: float) -> None:
    x, y = samples(10, 1)
    result = unrolled(x, y, {**SGD, **changes}, **options)
    expected = net(7).weight + factor * gradient(net(0), x, y)
    assert torch.allclose(result.model.weight, expected, atol=1e-7)


def test_at_the_trained_weights_no_start_weights_are_needed() -> None:
    x, y = samples(10, 1)
    result = expunge.unlearn(net(7), forget=split(x, y), method="unrolling", at="trained", recipe=SGD, device="cpu")
    expected = net(7).weight + 3 * 1e-3 / 4 * gradient(net(7), x, y)
    assert torch.allclose(result.model.weight, expected, atol=1e-7)
    assert make_method("unrolling").needs.initial
    assert not result.needs.initial


def test_without_start_weights_it_says_what_to_do() -> None:
    with pytest.raises(UsageError, match=r'pass initial=\.\.\., or at="trained"'):
        expunge.unlearn(net(7), forget=split(*samples(4, 1)), method="unrolling", recipe=SGD, device="cpu")


def test_of_a_training_of_few_small_steps_it_takes_back_nearly_all() -> None:
    """The claim: the error against training without D_f is of second order in the learning rate."""
    (kept_x, kept_y), (gone_x, gone_y) = samples(24, 2), samples(8, 3)
    errors = []
    for lr in (1e-2, 1e-3):
        recipe = {**SGD, "lr": lr, "batch_size": 32}  # full batches, so that leaving samples out changes no order
        both = split(torch.cat([kept_x, gone_x]), torch.cat([kept_y, gone_y]))
        trained = expunge.train(net(0), both, recipe=recipe, device="cpu").model
        result = expunge.unlearn(
            trained, forget=split(gone_x, gone_y), method="unrolling", initial=net(0), recipe=recipe, device="cpu"
        )
        # What training would have done without D_f: each kept sample still counts 1/32.
        without = net(0)
        for _ in range(3):
            loss = F.cross_entropy(without(kept_x), kept_y, reduction="sum") / 32
            steps = torch.autograd.grad(loss, list(without.parameters()))
            with torch.no_grad():
                for p, step in zip(without.parameters(), steps, strict=True):
                    p -= lr * step
        left = float((result.model.weight - without.weight).detach().norm())
        errors.append(left)
        assert left < 0.1 * float((trained.weight - without.weight).detach().norm())
    assert errors[1] == pytest.approx(errors[0] / 100, rel=0.2)


def test_statistics_stay_and_the_gradient_is_that_of_training() -> None:
    problem = toy_problem(forget_class=1)
    recipe = {**SGD, "batch_size": 8, "lr": 0.01}
    common: dict[str, Any] = {"method": "unrolling", "initial": problem.initial, "device": "cpu"}
    training = expunge.unlearn(problem.model, forget=problem.forget, recipe=recipe, **common)
    frozen = expunge.unlearn(problem.model, forget=problem.forget, recipe={**recipe, "batchnorm": "frozen"}, **common)
    before, after = weights(problem.model), weights(training.model)
    assert all(torch.equal(before[name], after[name]) for name in before if "running" in name)
    assert not same(after, weights(frozen.model))


def test_another_optimiser_is_noted() -> None:
    x, y = samples(10, 1)
    assert unrolled(x, y, SGD).notes == []
    assert any("optimiser is adam" in note for note in unrolled(x, y, {**SGD, "optimizer": "adam"}).notes)
