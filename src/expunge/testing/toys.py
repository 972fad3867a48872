"""A problem small enough for dozens of runs a second apart, with a known answer.

Four classes of 8 x 8 images: a bright quadrant in noise. Any sound classifier learns them in a few epochs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.data.split import ResidentStore, Split
from expunge.models.modes import training_mode

CLASSES = 4


class ToyNet(nn.Module):
    """Conv - (BatchNorm) - ReLU - pool - linear - linear. tied: one more use of the first linear's weight."""

    def __init__(self, batchnorm: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8) if batchnorm else nn.Identity()
        self.hidden = nn.Linear(8 * 4, 16)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(torch.relu(self.norm(self.conv(x))), 2)
        return self.head(torch.relu(self.hidden(x.flatten(1))))


class TiedNet(nn.Module):
    """Two linear layers that are one parameter, and a frozen one in front."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(64, 16)
        self.first = nn.Linear(16, 16)
        self.second = nn.Linear(16, 16)
        self.second.weight = self.first.weight
        self.head = nn.Linear(16, CLASSES)
        self.stem.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x.flatten(1)))
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))))


class SpyStore(ResidentStore):
    """Counts the samples that were fetched and remembers their positions."""

    def __init__(self, samples: Tensor, labels: Tensor) -> None:
        super().__init__(samples, labels, classes=[str(c) for c in range(CLASSES)], name="toy")
        self.fetched: list[int] = []

    def fetch(self, chunks: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
        for chunk, samples in zip(chunks, super().fetch(chunks, device), strict=True):
            self.fetched.extend(chunk.tolist())
            yield samples


def toy_images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images (count, 1, 8, 8) in [0, 1] and labels (count,), classes in turn."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    images = 0.8 * torch.rand(count, 1, 8, 8, generator=generator)
    for i, label in enumerate(labels.tolist()):
        row, column = 4 * (label // 2), 4 * (label % 2)
        images[i, :, row : row + 4, column : column + 4] += 0.2
    return images.clamp(0, 1), labels


@dataclass
class ToyProblem:
    """Splits over separate stores, so that a spy sees which split was read, and a trained model."""

    model: nn.Module
    forget: Split
    retain: Split
    validation: Split
    test: Split
    initial: dict[str, Tensor]
    spies: dict[str, SpyStore] = field(default_factory=dict)


def toy_problem(model: nn.Module | None = None, *, epochs: int = 6, forget_class: int | None = 1) -> ToyProblem:
    """A trained toy model and its splits: one class to forget, or a mixed handful (`forget_class=None`)."""
    images, labels = toy_images(120, seed=0)
    gone = torch.arange(120) < 24 if forget_class is None else labels == forget_class
    held_x, held_y = toy_images(40, seed=1)
    test_x, test_y = toy_images(80, seed=2)
    spies = {
        "forget": SpyStore(images[gone], labels[gone]),
        "retain": SpyStore(images[~gone], labels[~gone]),
        "validation": SpyStore(held_x, held_y),
        "test": SpyStore(test_x, test_y),
    }
    if model is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = ToyNet()
    initial = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    training_mode(model)
    for _ in range(epochs):
        for part in torch.arange(120).split(30):
            optimizer.zero_grad()
            F.cross_entropy(model(images[part]), labels[part]).backward()
            optimizer.step()
    model.eval()
    splits = {name: Split.whole(store, name) for name, store in spies.items()}
    return ToyProblem(model=model, initial=initial, spies=spies, **splits)
