"""Stacked training gives every model what it would get alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from expunge.core.errors import DivergedError, UsageError
from expunge.core.run import Run
from expunge.data.split import ResidentStore, Split
from expunge.models.anatomy import reset_parameters
from expunge.testing.toys import toy_images
from expunge.training.loop import train_model
from expunge.training.recipe import Recipe
from expunge.training.stacked import train_stacked


def net(norm: bool = True) -> nn.Module:
    # A bias before BatchNorm has no gradient but rounding, which Adam would turn into full steps.
    layers: list[nn.Module] = [nn.Conv2d(1, 4, 3, padding=1, bias=not norm), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4)]
    if norm:
        layers.insert(1, nn.BatchNorm2d(4))
    model = nn.Sequential(*layers)
    model(torch.zeros(2, *toy_images(2, 0)[0].shape[1:]))
    return model


def parts(sizes: tuple[int, ...] = (20, 20, 20)) -> list[Split]:
    x, y = toy_images(60, 0)
    whole = Split.whole(ResidentStore(x, y, classes=["a", "b", "c", "d"]), "train")
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [whole.take(torch.arange(end - size, end)) for end, size in zip(ends, sizes, strict=True)]


def models(norm: bool = True) -> list[nn.Module]:
    found = [net(norm) for _ in range(3)]
    for seed, model in enumerate(found):
        reset_parameters(model, seed=seed)
    return found


@pytest.mark.parametrize(
    "recipe",
    [
        {"optimizer": "adam", "lr": 0.01},
        {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.01},
        {"optimizer": "sgd", "lr": 0.05, "clip": 0.1},
        {"optimizer": "adamw", "lr": 0.01, "batchnorm": "frozen", "l2_reference": 0.1},
        {"optimizer": "sgd", "lr": 0.05, "augment": "crop-flip", "schedule": "cosine"},
    ],
)
def test_every_model_gets_what_it_would_get_alone(recipe: dict[str, Any]) -> None:
    settings = Recipe(**{"epochs": 3, "batch_size": 8, **recipe})  # 20 samples: the last batch is short
    data, alone = parts(), models()
    stacked = copy.deepcopy(alone)
    runs = [Run(seed=seed, device=torch.device("cpu")) for seed in (5, 6, 7)]
    for model, split, seed in zip(alone, data, (5, 6, 7), strict=True):
        train_model(model, split, settings, Run(seed=seed, device=torch.device("cpu")))
    train_stacked(stacked, data, settings, runs)
    for mine, theirs in zip(stacked, alone, strict=True):
        for name, value in theirs.state_dict().items():
            torch.testing.assert_close(mine.state_dict()[name], value, rtol=2e-4, atol=2e-6, msg=name)
    assert not torch.equal(stacked[0].state_dict()["0.weight"], stacked[1].state_dict()["0.weight"])


def test_weights_that_are_fixed_stay() -> None:
    stacked = models()
    for model in stacked:
        model.get_submodule("0").requires_grad_(False)
    before = [model.state_dict()["0.weight"].clone() for model in stacked]
    runs = [Run(seed=seed, device=torch.device("cpu")) for seed in range(3)]
    train_stacked(stacked, parts(), Recipe(epochs=1, batch_size=8, weight_decay=0.1), runs)
    for model, weight in zip(stacked, before, strict=True):
        assert torch.equal(model.state_dict()["0.weight"], weight)


def test_what_cannot_be_stacked_is_refused() -> None:
    runs = [Run(seed=seed, device=torch.device("cpu")) for seed in range(3)]
    with pytest.raises(UsageError, match="one length"):
        train_stacked(models(), parts((20, 20, 19)), Recipe(epochs=1), runs)
    with pytest.raises(UsageError, match="one architecture"):
        train_stacked([*models()[:2], net(norm=False)], parts(), Recipe(epochs=1), runs)
    with pytest.raises(DivergedError, match="not finite"):
        train_stacked(models(norm=False), parts(), Recipe(epochs=5, lr=1e30, optimizer="sgd"), runs)
