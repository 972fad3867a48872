"""Every method on a network of the kind that people bring: BatchNorm that sees one value per channel, activations that
work in place, more outputs in train mode; and on the smallest request, one sample."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import expunge
from expunge.methods import METHODS

from .settings import SETTINGS

BATCH = 8


class Brought(nn.Module):
    """In-place activations after every layer, BatchNorm on (B, C) values, a tuple in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
            nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8), nn.LeakyReLU(inplace=True),
        )  # fmt: skip
        self.head = nn.Linear(8, 4)
        self.auxiliary = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Any:
        hidden = self.body(x)
        logits = self.head(hidden)
        return (logits, self.auxiliary(hidden)) if self.training else logits


def brought() -> Brought:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Brought()


@pytest.mark.parametrize(
    "name", [name for name in METHODS.names() if METHODS.load(name).same_tensors and SETTINGS[name].prepare is None]
)
def test_one_sample_and_a_rest_of_one(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(4 * BATCH + 2, 1, 8, 8, generator=generator), torch.arange(4 * BATCH + 2) % 4
    model = brought()
    options = dict(SETTINGS[name].options)
    options |= {key: BATCH for key in options if key.endswith("batch_size")} | (
        {"epochs": 1} if "epochs" in options else {}
    )
    result = expunge.unlearn(
        model, forget=(x[:1], y[:1]), retain=(x[1:], y[1:]), validation=(x.flip(-1), y), method=name,
        recipe={"epochs": 1, "batch_size": BATCH}, initial=brought().state_dict(), device="cpu", **options,
    )  # fmt: skip
    assert type(result.model) is Brought
    assert not any(norm._forward_hooks for norm in result.model.modules())
    assert all(bool(torch.isfinite(value).all()) for value in result.model.state_dict().values())
