"""The three tasks of the LAF paper, with exactly the samples that the authors' code selects.

Paper      Shen et al., ICLR 2024, arXiv:2404.00506, section 4 (tasks); the draws of the authors' code

Python's `random`, seeded once, draws in turn: per class the forget samples, as many retained samples (used by the
authors' attack only), and for `noise` one wrong label per forget sample, which is never 9. The same seed and the
official order of the data give the authors' sets. Scenarios without these peculiarities: `per-class:5=0.4+...`,
`class:0`, `noisy:amount=0.6,classes=...`.
"""

from __future__ import annotations

import random
from typing import ClassVar, Literal

import torch
from torch import Tensor

from expunge.core.errors import UsageError
from expunge.core.options import Field
from expunge.data.split import Split
from expunge.scenarios.base import Scenario, scenario_class

CLASSES = 10
NOISY = 9  # wrong labels are drawn below this one


@scenario_class("laf-task")
class LAFTask(Scenario):
    """Tasks on ten classes; random: 40 % of each of the classes 5 to 9; class: one class; noise: 60 % of 0 to 4."""

    primary: ClassVar[str] = "task"
    task: Literal["random", "class", "noise"] = Field("random", description="data, class or noisy label removal")
    target: int = Field(0, ge=0, lt=CLASSES, description="the class, for the task `class`")

    def select(self, train: Split, generator: torch.Generator) -> Tensor:
        if train.num_classes != CLASSES:
            raise UsageError(f"laf-task: needs {CLASSES} classes, {train.name} has {train.num_classes}.")
        return self._draw(train, random.Random(generator.initial_seed()))

    def relabel(self, train: Split, forget: Tensor, generator: torch.Generator) -> Split:
        if self.task != "noise" or train.labels is None:
            return train
        draws = random.Random(generator.initial_seed())
        self._draw(train, draws)
        self._sample(train, forget, draws)
        labels = train.labels.clone()
        for position in forget.tolist():
            truth = int(labels[position])
            labels[position] = draws.choice([label for label in range(NOISY) if label != truth])
        return train.with_labels(labels)

    def attacked(self, train: Split, forget: Tensor, generator: torch.Generator) -> Tensor:
        """Positions (k,) of the authors' `sample`: as many retained samples as there are forget samples."""
        draws = random.Random(generator.initial_seed())
        self._draw(train, draws)
        return torch.tensor(self._sample(train, forget, draws), dtype=torch.long)

    def _sample(self, train: Split, forget: Tensor, draws: random.Random) -> list[int]:
        forgotten = set(forget.tolist())
        retained = [position for position in train.index.tolist() if position not in forgotten]
        return draws.sample(retained, min(len(forgotten), len(retained)))

    def _draw(self, train: Split, draws: random.Random) -> Tensor:
        shares = {
            "random": {label: 0.4 for label in range(5, CLASSES)},
            "class": {self.target: 1.0},
            "noise": {label: 0.6 for label in range(5)},
        }[self.task]
        chosen: list[int] = []
        for label in range(CLASSES):
            members = train.index[train.y == label].tolist()
            chosen += draws.sample(members, int(shares.get(label, 0.0) * len(members)))
        return torch.tensor(chosen, dtype=torch.long)
