"""A toy problem with a known answer, small enough for many runs.

Four classes of 8 x 8 images: a bright quadrant in noise. Any sound classifier learns them in a few epochs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.data.split import ResidentStore, Split, Store
from expunge.models.modes import training_mode

CLASSES = 4


class ToyNet(nn.Module):
    """Conv - (BatchNorm) - ReLU - pool - linear - linear."""

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
    """A frozen linear layer, then two linear layers with tied weights."""

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
    """A store that records which samples are fetched.

    Attributes:
        fetched: positions fetched from this store, in order.
        handed: positions fetched from stores sealed from it, which are those that methods read.
    """

    def __init__(self, samples: Tensor, labels: Tensor) -> None:
        ids = [f"sample {i}" for i in range(len(samples))]
        classes = [str(c) for c in range(CLASSES)]
        super().__init__(samples, labels, classes=classes, ids=ids, columns={"row": np.array(ids)}, name="toy")
        self.fetched: list[int] = []
        self.handed: list[int] = []
        self._positions: list[int] | None = None

    def fetch(self, chunks: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
        for chunk, samples in zip(chunks, super().fetch(chunks, device), strict=True):
            if self._positions is None:
                self.fetched.extend(chunk.tolist())
            else:
                self.handed.extend(self._positions[row] for row in chunk.tolist())
            yield samples

    def sealed(self, index: Tensor, labels: Tensor | None, identity: str) -> Store:
        sealed = super().sealed(index, labels, identity)
        own, rows = self._positions, index.tolist()
        sealed._positions = rows if own is None else [own[row] for row in rows]  # type: ignore[attr-defined]
        return sealed


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
    """A trained model, and splits of one store, as of a real data set."""

    model: nn.Module
    forget: Split
    retain: Split
    validation: Split
    test: Split
    initial: dict[str, Tensor]
    store: SpyStore

    def split(self, name: str) -> Split:
        """A split by name."""
        split: Split = getattr(self, name)
        return split

    def read(self, name: str) -> int:
        """Number of samples of a split that were fetched, by the method or its caller."""
        return self._count(name, self.store.fetched) + self.handed(name)

    def handed(self, name: str) -> int:
        """Number of samples of a split that the method has fetched."""
        return self._count(name, self.store.handed)

    def _count(self, name: str, positions: list[int]) -> int:
        members = set(self.split(name).index.tolist())
        return sum(position in members for position in positions)

    def clear(self) -> None:
        """Reset the counts."""
        self.store.fetched.clear()
        self.store.handed.clear()


TRAIN, VALIDATION, TEST = 120, 40, 80


def toy_problem(model: nn.Module | None = None, *, epochs: int = 6, forget_class: int | None = 1) -> ToyProblem:
    """A trained toy model and its splits, with one class as forget set, or 24 mixed samples (`forget_class=None`)."""
    parts = [toy_images(count, seed) for seed, count in enumerate((TRAIN, VALIDATION, TEST))]
    images, labels = parts[0]
    chosen = torch.arange(TRAIN) < 24 if forget_class is None else labels == forget_class
    store = SpyStore(torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts]))
    rows = torch.arange(len(store)).split([TRAIN, VALIDATION, TEST])
    index = {"forget": rows[0][chosen], "retain": rows[0][~chosen], "validation": rows[1], "test": rows[2]}
    if model is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = ToyNet()
    initial = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    training_mode(model)
    for _ in range(epochs):
        for part in torch.arange(TRAIN).split(30):
            optimizer.zero_grad()
            F.cross_entropy(model(images[part]), labels[part]).backward()
            optimizer.step()
    model.eval()
    whole = Split.whole(store)
    splits = {name: whole.take(positions, name) for name, positions in index.items()}
    return ToyProblem(model=model, initial=initial, store=store, **splits)
