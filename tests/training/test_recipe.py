"""Recipes: the learning rate of every epoch, the optimisers, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from expunge.core.errors import UsageError
from expunge.core.options import to_dict
from expunge.training.recipe import Recipe, clip_gradients, learning_rate, make_optimizer, set_rate


@pytest.mark.parametrize(
    ("options", "rates"),
    [
        ({"schedule": "constant"}, [1.0, 1.0, 1.0, 1.0]),
        ({"schedule": "cosine"}, [1.0, 0.853553, 0.5, 0.146447]),
        ({"schedule": "milestones"}, [1.0, 1.0, 1.0, 1.0]),
        ({"schedule": "milestones", "milestones": (1, 3)}, [1.0, 0.1, 0.1, 0.01]),
        ({"schedule": "milestones", "milestones": (3, 1)}, [1.0, 0.1, 0.1, 0.01]),
        ({"schedule": "milestones", "milestones": (2, 2), "decay": 0.5}, [1.0, 1.0, 0.25, 0.25]),
        ({"schedule": "milestones", "milestones": (4,)}, [1.0, 1.0, 1.0, 1.0]),
        ({"schedule": "milestones", "milestones": (0,)}, [0.1, 0.1, 0.1, 0.1]),
        ({"schedule": "constant", "milestones": (1,)}, [1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_rates_per_epoch(options: dict[str, object], rates: list[float]) -> None:
    recipe = Recipe(epochs=4, lr=1.0, **options)
    assert [recipe.rate(e) for e in (1, 2, 3, 4)] == pytest.approx(rates, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "schedule"),
    [
        ({"schedule": "cosine"}, lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=7)),
        (
            {"schedule": "milestones", "milestones": (2, 5), "decay": 0.3},
            lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [2, 5], gamma=0.3),
        ),
    ],
)
def test_rates_are_those_of_the_schedules_of_pytorch(options: dict[str, object], schedule: object) -> None:
    recipe = Recipe(epochs=7, lr=0.3, **options)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    theirs, scheduler = [], schedule(optimizer)  # type: ignore[operator]
    for _ in range(7):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert [recipe.rate(e) for e in range(1, 8)] == pytest.approx(theirs, rel=1e-9)


def test_a_cosine_of_no_epochs_is_a_number() -> None:
    assert math.isfinite(learning_rate(1, base=0.5, schedule="cosine", epochs=0))


@pytest.mark.parametrize(
    ("name", "kind"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)]
)
def test_optimisers_hold_the_trainable_parameters_and_the_given_numbers(name: str, kind: type) -> None:
    net = nn.Linear(2, 2)
    net.bias.requires_grad_(False)
    optimizer = make_optimizer(name, net.parameters(), lr=0.3, momentum=0.7, weight_decay=0.01)
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert [id(p) for p in group["params"]] == [id(net.weight)]
    assert (group["lr"], group["weight_decay"]) == (0.3, 0.01)
    assert group.get("momentum", 0.7) == 0.7
    set_rate(optimizer, 0.05)
    assert optimizer.param_groups[0]["lr"] == 0.05


@pytest.mark.parametrize(("limit", "norm"), [(None, 5.0), (10.0, 5.0), (1.0, 1.0)])
def test_clipping_limits_the_norm_of_all_gradients_together(limit: float | None, norm: float) -> None:
    net = nn.Linear(1, 1)
    net.weight.grad, net.bias.grad = torch.tensor([[3.0]]), torch.tensor([4.0])
    clip_gradients(net, limit)
    assert float(torch.cat([net.weight.grad.flatten(), net.bias.grad]).norm()) == pytest.approx(norm, rel=1e-4)
    assert float(net.bias.grad / net.weight.grad) == pytest.approx(4 / 3)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"epochs": -1}, "epochs.*greater than or equal to 0"),
        ({"batch_size": 0}, "batch_size.*greater than or equal to 1"),
        ({"lr": 0}, "lr.*greater than 0"),
        ({"momentum": 1}, "momentum.*less than 1"),
        ({"clip": 0}, "clip.*greater than 0"),
        ({"schedule": "cosin"}, "schedule.*'cosine'.*'cosin'"),
        ({"optimiser": "sgd"}, "did you mean `optimizer`"),
    ],
)
def test_what_is_refused(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        Recipe(**options)


def test_a_recipe_goes_through_a_dictionary() -> None:
    recipe = Recipe(schedule="milestones", milestones=(3, 5), clip=1.5)
    assert Recipe(**to_dict(recipe)) == recipe
