"""Channels last where a model allows it; nothing changes where it does not, and nothing stays behind."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import expunge
from expunge.models.layout import channels_last, fast_layout
from expunge.testing.toys import ToyNet, toy_problem


class Viewing(nn.Module):
    """Reshapes feature maps with `view`, which channels-last maps refuse."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4 * 64, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).view(len(x), -1))


def is_last(weight: Tensor) -> bool:
    return weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


def test_a_model_that_allows_it_is_converted_and_given_back_as_it_was() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    x = torch.randn(2, 3, 8, 8)
    before = net(x).detach()
    with fast_layout(net, (3, 8, 8)):
        assert is_last(net[0].weight)
        assert torch.allclose(net(x).detach(), before, atol=1e-6)
    assert net[0].weight.is_contiguous()


@pytest.mark.parametrize("net", [Viewing(), nn.Sequential(nn.Flatten(), nn.Linear(192, 2))], ids=["view", "linear"])
def test_a_model_that_does_not_stays_as_it_is(net: nn.Module) -> None:
    assert not channels_last(net, (3, 8, 8))
    assert all(p.is_contiguous() for p in net.parameters())


def test_a_model_that_views_its_feature_maps_can_be_trained_and_can_forget() -> None:
    x, y = torch.randn(40, 3, 8, 8), torch.arange(40) % 4
    trained = expunge.train(Viewing(), (x, y), recipe={"epochs": 1}, device="cpu")
    result = expunge.unlearn(
        trained.model, forget=(x[:8], y[:8]), retain=(x[8:], y[8:]), method="finetune", epochs=1, device="cpu"
    )
    assert result.status == "finished"


def test_results_have_the_default_layout() -> None:
    problem = toy_problem(ToyNet(), forget_class=1)
    result = expunge.unlearn(
        problem.model, forget=problem.forget, retain=problem.retain, method="finetune", epochs=1, device="cpu"
    )
    assert all(p.is_contiguous() for p in result.model.parameters())
