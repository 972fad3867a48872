"""Training, held-out and test data of each world: real images made small, and three synthetic sources.

Every source is a fixed draw: seeds of a tournament vary the training and the methods, never the data.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from expunge.core.seeds import torch_generator
from expunge.data.sources import load_data

DUPLICATES = 60  # training samples of which a near copy is in the training data as well
HELD_OUT = 1000
TEST = 3000


@dataclass(frozen=True, eq=False)
class Data:
    """x: (N, ...) inputs; y: (N,) labels; the last `DUPLICATES` training samples are near copies of the first."""

    x: Tensor
    y: Tensor
    held_x: Tensor
    held_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int


def assemble(draw: tuple[Tensor, Tensor], count: int, classes: int, copy: Callable[[Tensor], Tensor]) -> Data:
    """Cut `draw` into training, held-out and test data, and append near copies made by `copy`."""
    x, y = draw
    held, test = count + HELD_OUT, count + HELD_OUT + TEST
    return Data(
        x=torch.cat([x[:count], copy(x[:DUPLICATES])]),
        y=torch.cat([y[:count], y[:DUPLICATES]]),
        held_x=x[count:held],
        held_y=y[count:held],
        test_x=x[held:test],
        test_y=y[held:test],
        classes=classes,
    )


def _images(name: str, count: int, classes: Sequence[int] = range(10)) -> tuple[Tensor, Tensor]:
    """Images of these classes only, numbered anew."""
    split = load_data(os.path.join(os.environ.get("EXPUNGE_TEST_DATA", "../shared/data"), name))
    kept = split.index[torch.isin(split.y, torch.tensor(classes))]
    order = torch.randperm(len(kept), generator=torch_generator(0, "worlds", name))
    part = split.take(kept[order[: count + HELD_OUT + TEST]])
    return part.inputs(), torch.searchsorted(torch.tensor(classes), part.y)


def _noise(x: Tensor, scale: float, name: str) -> Tensor:
    return scale * torch.randn(x.shape, generator=torch_generator(0, "worlds", name))


@functools.cache
def noisy_digits(count: int = 2000) -> Data:
    """MNIST at 14 x 14 pixels under noise, so that a network has something to memorise."""
    x, y = _images("mnist", count)
    x = F.avg_pool2d(x, 2)
    x = x / x.std() + _noise(x, 1.2, "digits")
    return assemble((x, y), count, 10, lambda rows: rows + _noise(rows, 0.2, "digit copies"))


@functools.cache
def small_pictures(count: int = 1000) -> Data:
    """CIFAR-10 at 16 x 16 pixels."""
    return _pictures(count, range(10))


@functools.cache
def fewer_pictures(count: int = 900) -> Data:
    """Aeroplanes, cars, cats, deer and ships of CIFAR-10 at 16 x 16 pixels."""
    return _pictures(count, (0, 1, 3, 4, 8))


def _pictures(count: int, classes: Sequence[int]) -> Data:
    x, y = _images("cifar10", count, classes)
    x = F.avg_pool2d(x, 2)
    x = (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True)
    return assemble((x, y), count, len(classes), lambda rows: rows.flip(3))


@functools.cache
def table(count: int = 3000, features: int = 24, classes: int = 6) -> Data:
    """Three Gaussian clusters per class, turned and stretched; 8 % of all labels, test ones too, are drawn anew."""
    random = torch_generator(0, "worlds", "table")
    total = count + HELD_OUT + TEST
    centres = 1.15 * torch.randn(classes, 3, features, generator=random)
    stretch = torch.randn(classes, 3, features, features, generator=random) / math.sqrt(features)
    y = torch.randint(classes, (total,), generator=random)
    cluster = torch.randint(3, (total,), generator=random)
    noise = torch.randn(total, features, generator=random)
    x = centres[y, cluster] + 1.6 * torch.einsum("nf,nfg->ng", noise, stretch[y, cluster])
    redrawn = torch.rand(total, generator=random) < 0.08
    y = torch.where(redrawn, torch.randint(classes, (total,), generator=random), y)
    return assemble((x, y), count, classes, lambda rows: rows + _noise(rows, 0.1, "table copies"))


@functools.cache
def sentences(count: int = 1500, vocabulary: int = 400, length: int = 24, classes: int = 8) -> Data:
    """Token numbers of a topic model: each class mixes two of ten topics, each topic prefers some tokens.

    The numbers are floating point here, and the network casts them: so every store can carry them.
    """
    random = torch_generator(0, "worlds", "sentences")
    total = count + HELD_OUT + TEST
    topics = torch.softmax(1.3 * torch.randn(10, vocabulary, generator=random), 1)
    pairs = torch.stack([torch.arange(classes), (torch.arange(classes) + 3) % 10], 1)
    y = torch.randint(classes, (total,), generator=random)
    tokens = torch.empty(total, length, dtype=torch.long)
    for position in range(length):
        topic = pairs[y, torch.randint(2, (total,), generator=random)]
        background = torch.rand(total, generator=random) < 0.35
        topic = torch.where(background, torch.randint(10, (total,), generator=random), topic)
        tokens[:, position] = torch.multinomial(topics[topic], 1, generator=random)[:, 0]

    def copy(rows: Tensor) -> Tensor:
        changed = rows.clone()
        changed[:, :2] = torch.randint(vocabulary, (len(rows), 2), generator=random).float()
        return changed

    return assemble((tokens.float(), y), count, classes, copy)


@functools.cache
def signals(count: int = 1000, length: int = 64, classes: int = 6) -> Data:
    """Two-channel oscillations with a burst; the class is a pair of frequency and shape, buried in noise."""
    random = torch_generator(0, "worlds", "signals")
    total = count + HELD_OUT + TEST
    y = torch.randint(classes, (total,), generator=random)
    time = torch.arange(length) / length

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(total, 1, generator=random)

    rate = 3 + 1.5 * (y % 3)[:, None] + uniform(-0.6, 0.6)
    phase, place = uniform(0, 2 * math.pi), uniform(0.2, 0.8)
    wave = torch.sin(2 * math.pi * rate * time + phase)
    square = torch.where((y >= 3)[:, None], wave.sign(), wave)
    burst = torch.exp(-(((time - place) / 0.12) ** 2))
    x = torch.stack([square * (0.5 + burst), torch.cos(math.pi * rate * time + phase) * burst], 1)
    x = x + 0.9 * torch.randn(x.shape, generator=random)
    return assemble((x, y), count, classes, lambda rows: rows + _noise(rows, 0.15, "signal copies"))
