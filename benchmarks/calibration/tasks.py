"""Five small networks on five kinds of data, five requests, and the plain loop that trains them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from expunge.core.seeds import derive, torch_generator
from expunge.data.split import ResidentStore, Split

REQUESTS = ("random", "class", "wrong", "user", "few")
FORGOTTEN_CLASS = 1


class TableNet(nn.Module):
    """Two hidden layers with LayerNorm; (B, 16) to 5 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Linear(16, 64), nn.LayerNorm(64)
        self.second, self.norm2 = nn.Linear(64, 64), nn.LayerNorm(64)
        self.out = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm1(self.first(x)))
        return self.out(F.gelu(self.norm2(self.second(x))))


class ImageNet8(nn.Module):
    """Two convolutions with BatchNorm; (B, 1, 8, 8) to 10 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.conv2, self.bn2 = nn.Conv2d(12, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24)
        self.hidden, self.out = nn.Linear(24 * 4, 48), nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        return self.out(F.relu(self.hidden(x.flatten(1))))


class BagNet(nn.Module):
    """Mean of token embeddings and a hidden layer; (B, 16) token numbers to 6 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.hidden, self.out = nn.Embedding(200, 48), nn.Linear(48, 64), nn.Linear(64, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.hidden(self.embedding(x.long()).mean(1))))


class SignalNet(nn.Module):
    """Two one-dimensional convolutions with GroupNorm; (B, 2, 32) to 4 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv1d(2, 16, 5, 2, 2), nn.GroupNorm(4, 16)
        self.conv2, self.norm2 = nn.Conv1d(16, 32, 5, 2, 2), nn.GroupNorm(4, 32)
        self.out = nn.Linear(32 * 8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm1(self.conv1(x)))
        return self.out(F.silu(self.norm2(self.conv2(x))).flatten(1))


class PatchNet(nn.Module):
    """One transformer layer over 4 x 4 patches; (B, 1, 8, 8) to 10 classes."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, 2)
        self.position = nn.Parameter(0.02 * torch.randn(1, 16, width))
        self.norm1, self.attention = nn.LayerNorm(width), nn.MultiheadAttention(width, 2, batch_first=True)
        self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 96), nn.GELU(), nn.Linear(96, width))
        self.out = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position
        h = self.norm1(x)
        x = x + self.attention(h, h, h, need_weights=False)[0]
        return self.out(self.norm3(x + self.mlp(self.norm2(x))).mean(1))


Data = tuple[Tensor, Tensor, Tensor, Tensor, int]
"""Training inputs and labels, unseen inputs and labels, number of classes."""


def _cut(x: Tensor, y: Tensor, train: int, classes: int) -> Data:
    return x[:train], y[:train], x[train:], y[train:], classes


@functools.cache
def _table() -> Data:
    """Two Gaussian clusters per class; 10 % of all labels are drawn anew."""
    g = torch_generator(0, "calibration", "table")
    y = torch.randint(5, (2600,), generator=g)
    centres = 1.1 * torch.randn(5, 2, 16, generator=g)
    x = centres[y, torch.randint(2, (2600,), generator=g)] + 1.3 * torch.randn(2600, 16, generator=g)
    redrawn = torch.rand(2600, generator=g) < 0.1
    return _cut(x, torch.where(redrawn, torch.randint(5, (2600,), generator=g), y), 900, 5)


@functools.cache
def _digits() -> Data:
    """scikit-learn's digits under noise; 900 to train on, 897 unseen."""
    g = torch_generator(0, "calibration", "digits")
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=g)
    x = torch.from_numpy(digits.images).float()[order, None] / 8 - 1
    x = x + 0.6 * torch.randn(x.shape, generator=g)
    return _cut(x, torch.from_numpy(np.asarray(digits.target)).long()[order], 900, 10)


@functools.cache
def _tokens() -> Data:
    """Each class prefers some of 200 tokens; token numbers are floating point and the network casts them."""
    g = torch_generator(0, "calibration", "tokens")
    shares = torch.softmax(0.9 * torch.randn(6, 200, generator=g), 1)
    y = torch.randint(6, (2600,), generator=g)
    return _cut(torch.multinomial(shares[y], 16, replacement=True, generator=g).float(), y, 900, 6)


@functools.cache
def _signals() -> Data:
    """Two channels of a sine whose frequency is the class, with random phase, under noise."""
    g = torch_generator(0, "calibration", "signals")
    y = torch.randint(4, (2400,), generator=g)
    time = torch.linspace(0, 1, 32)
    phase = 6.3 * torch.rand(2400, 2, 1, generator=g)
    x = torch.sin(6.3 * (1.5 + y[:, None, None]) * time + phase) + 1.1 * torch.randn(2400, 2, 32, generator=g)
    return _cut(x, y, 800, 4)


@dataclass(frozen=True)
class Task:
    """A network, its data and its training: Adam at `lr`, batches of 50, linear decay."""

    name: str
    net: Callable[[], nn.Module]
    data: Callable[[], Data]
    epochs: int
    lr: float

    def fresh(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "calibration", self.name))
            return self.net()

    def train(self, split: Split, seed: int, epochs: int | None = None) -> nn.Module:
        """A network trained from fresh weights on a split."""
        net, x, y = self.fresh(seed).train(), split.inputs(), split.y
        optimizer = torch.optim.Adam(net.parameters(), lr=self.lr)
        steps = (epochs or self.epochs) * -(-len(x) // 50)
        decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
        g = torch_generator(seed, "calibration", self.name, "order")
        for _ in range(epochs or self.epochs):
            for rows in torch.randperm(len(x), generator=g).split(50):
                optimizer.zero_grad()
                F.cross_entropy(net(x[rows]), y[rows]).backward()
                optimizer.step()
                decay.step()
        return net.eval()


TASKS = {
    task.name: task
    for task in (
        Task("table", TableNet, _table, 30, 3e-3),
        Task("digits", ImageNet8, _digits, 16, 3e-3),
        Task("tokens", BagNet, _tokens, 20, 5e-3),
        Task("signals", SignalNet, _signals, 20, 3e-3),
        Task("patches", PatchNet, _digits, 35, 3e-3),
    )
}


@dataclass(frozen=True, eq=False)
class Request:
    """What is asked of a task: the splits of an audit, and all training samples with the labels that are trained on."""

    name: str
    train: Split
    forget: Split
    retain: Split
    test: Split


def make_request(task: Task, name: str) -> Request:
    """random: 120 samples; class: a whole one; wrong: 120 wrong labels; user: 60, mostly of two classes; few: 20."""
    x, y, unseen, answers, classes = task.data()
    g = torch_generator(0, "calibration", "request", name)
    order = torch.randperm(len(y), generator=g)
    labels = y
    if name == "class":
        forget = (y == FORGOTTEN_CLASS).nonzero()[:, 0]
    elif name == "user":
        weight = torch.full((classes,), 0.08)
        weight[torch.randperm(classes, generator=g)[:2]] = 1.0
        forget = order[torch.multinomial(weight[y[order]], 60, generator=g)]
    else:
        forget = order[: {"random": 120, "wrong": 120, "few": 20}[name]]
    if name == "wrong":
        labels = y.clone()
        labels[forget] = (y[forget] + torch.randint(1, classes, (len(forget),), generator=g)) % classes
    names = [str(c) for c in range(classes)]
    train = Split.whole(ResidentStore(x, labels, classes=names), "train")
    gone = torch.zeros(len(y), dtype=torch.bool)
    gone[forget] = True
    return Request(
        name, train, train.take(forget.sort().values, "forget"), train.take((~gone).nonzero()[:, 0], "retain"),
        Split.whole(ResidentStore(unseen, answers, classes=names), "test"),
    )  # fmt: skip
