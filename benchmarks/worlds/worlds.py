"""A world: a network, its data, and the plain loop that its owner trained it with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.worlds import data, nets
from benchmarks.worlds.data import Data
from expunge.core.seeds import derive, torch_generator

Parameters = Any
Schedule = torch.optim.lr_scheduler.LRScheduler

SMALLEST = 8  # samples; a last batch of fewer is left out of an epoch: statistics of BatchNorm over so few are noise


@dataclass(frozen=True)
class World:
    """recipe: what its owner would tell the package about the training; a schedule that it lacks is left out."""

    name: str
    summary: str
    net: Callable[[], nn.Module]
    data: Callable[[], Data]
    epochs: int
    batch: int
    optimizer: Callable[[Parameters], torch.optim.Optimizer]
    schedule: Callable[[torch.optim.Optimizer, int], Schedule]  # stepped after each batch; the total of steps is given
    recipe: Mapping[str, Any]

    def fresh(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "worlds", self.name, "init"))
            return self.net()

    def train(self, x: Tensor, y: Tensor, seed: int) -> nn.Module:
        """A network trained from fresh weights on x (N, ...) with labels y (N,)."""
        net = self.fresh(seed)
        optimizer = self.optimizer(net.parameters())
        batches = len(x) // self.batch + (len(x) % self.batch >= SMALLEST)
        schedule = self.schedule(optimizer, self.epochs * batches)
        random = torch_generator(seed, "worlds", self.name, "order")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "worlds", self.name, "dropout"))
            net.train()
            for _ in range(self.epochs):
                for rows in torch.randperm(len(x), generator=random).split(self.batch)[:batches]:
                    optimizer.zero_grad()
                    F.cross_entropy(net(x[rows]), y[rows]).backward()
                    optimizer.step()
                    schedule.step()
        return net.eval()


def _constant(optimizer: torch.optim.Optimizer, steps: int) -> Schedule:
    return torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0, steps)


def _drops(optimizer: torch.optim.Optimizer, steps: int) -> Schedule:
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, [int(0.6 * steps), int(0.85 * steps)], 0.1)


def _linear(optimizer: torch.optim.Optimizer, steps: int) -> Schedule:
    return torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, steps)


def _cosine(optimizer: torch.optim.Optimizer, steps: int) -> Schedule:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)


def _one_cycle(peak: float) -> Callable[[torch.optim.Optimizer, int], Schedule]:
    return lambda optimizer, steps: torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps + 1)


WORLDS = {
    world.name: world
    for world in (
        World(
            name="cnn",
            summary="CNN with BatchNorm, noisy MNIST at 14 x 14; SGD with momentum, two drops",
            net=nets.ConvBatchNorm,
            data=data.noisy_digits,
            epochs=24,
            batch=64,
            optimizer=lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-4),
            schedule=_drops,
            recipe={"optimizer": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 1e-4, "schedule": "milestones",
                    "milestones": (14, 20)},
        ),
        World(
            name="resnet",
            summary="ResNet with BatchNorm, CIFAR-10 at 16 x 16; Nesterov SGD, one cycle",
            net=nets.SmallResNet,
            data=data.small_pictures,
            epochs=18,
            batch=64,
            optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4),
            schedule=_one_cycle(0.1),
            recipe={"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "schedule": "cosine"},
        ),
        World(
            name="mlp",
            summary="MLP with LayerNorm, a table of 24 columns; Adam, constant rate",
            net=nets.TableMLP,
            data=data.table,
            epochs=40,
            batch=50,
            optimizer=lambda p: torch.optim.Adam(p, lr=1e-3),
            schedule=_constant,
            recipe={"optimizer": "adam", "lr": 1e-3, "weight_decay": 0.0, "schedule": "constant"},
        ),
        World(
            name="vit",
            summary="vision transformer, five classes of CIFAR-10 at 16 x 16; AdamW, one cycle",
            net=nets.SmallViT,
            data=data.fewer_pictures,
            epochs=28,
            batch=64,
            optimizer=lambda p: torch.optim.AdamW(p, lr=2e-3, weight_decay=0.05),
            schedule=_one_cycle(2e-3),
            recipe={"optimizer": "adamw", "lr": 2e-3, "weight_decay": 0.05, "schedule": "cosine"},
        ),
        World(
            name="tokens",
            summary="one transformer layer with dropout on token numbers; Adam, linear decay",
            net=nets.TokenNet,
            data=data.sentences,
            epochs=24,
            batch=64,
            optimizer=lambda p: torch.optim.Adam(p, lr=2e-3),
            schedule=_linear,
            recipe={"optimizer": "adam", "lr": 2e-3, "weight_decay": 0.0, "schedule": "cosine"},
        ),
        World(
            name="gru",
            summary="convolutions with GroupNorm and a GRU on signals; AdamW, cosine",
            net=nets.SignalNet,
            data=data.signals,
            epochs=36,
            batch=64,
            optimizer=lambda p: torch.optim.AdamW(p, lr=4e-3, weight_decay=0.01),
            schedule=_cosine,
            recipe={"optimizer": "adamw", "lr": 4e-3, "weight_decay": 0.01, "schedule": "cosine"},
        ),
    )
}  # fmt: skip
TUNED = ("cnn", "resnet", "mlp", "vit")  # what `unsee` was chosen on
