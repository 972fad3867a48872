"""Folding BatchNorm changes the time of a pass, never what it says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from expunge.models.build import build_model
from expunge.models.fold import folded
from expunge.testing.conformance import same, weights


def settled(model: nn.Module) -> nn.Module:
    """Statistics as after a training: nothing at its default."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator))
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
    return model.eval()


@pytest.mark.parametrize("name", ["resnet18-cifar", "resnet18-preact", "mobilenetv2-cifar", "small-cnn"])
def test_the_same_logits_and_input_gradients_with_fewer_norms(name: str) -> None:
    options = {} if name == "small-cnn" else {"width": 0.125}
    model = settled(build_model(name, num_classes=5, input_shape=(3, 16, 16), seed=0, options=options))
    before = weights(model)
    x = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    made = folded(model, x[:2])
    norms = [sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) for net in (model, made)]
    assert made is not model
    assert norms[1] < norms[0]
    assert torch.allclose(made(x), model(x), atol=1e-4, rtol=1e-4)
    assert torch.allclose(slope(made, x), slope(model, x), atol=1e-4, rtol=1e-3)
    assert same(weights(model), before)


def slope(model: nn.Module, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_(True)
    return torch.autograd.grad(model(x).logsumexp(1).sum(), x)[0]


class Branching(nn.Module):
    """Control flow on values: cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return x.mean((2, 3)) if bool(x.sum() > 0) else -x.mean((2, 3))


class Shared(nn.Module):
    """One convolution, two norms, and its raw output is used too: nothing may be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        raw = self.conv(x)
        return (self.one(raw) + self.two(self.conv(x + 1)) + raw).mean((2, 3))


def test_a_model_that_cannot_be_folded_stays_as_it_is() -> None:
    x = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    model = settled(Branching())
    assert folded(model, x) is model
    plain = nn.Sequential(nn.Flatten(), nn.Linear(36, 2)).eval()
    assert folded(plain, x) is plain
    shared = settled(Shared())
    assert torch.allclose(folded(shared, x)(x), shared(x), atol=1e-5)
