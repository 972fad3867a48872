"""Interclass confusion: samples of two classes with swapped labels; forgetting them should undo the confusion.

Paper      Goel et al., arXiv:2201.06640; "resolving confusion" in Kurmanji et al., NeurIPS 2023
Rule       n/2 samples of class A and n/2 of class B carry the other's label; D_f is exactly these n. Validation and
           test labels stay clean.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from expunge.core.errors import UsageError
from expunge.core.options import Field
from expunge.data.classes import class_index
from expunge.data.split import Split
from expunge.scenarios.base import Amount, Scenario, count_of, scenario_class
from expunge.scenarios.selections import draw


@scenario_class("confusion")
class Confusion(Scenario):
    """Swap the labels of samples of two classes; the store keeps the true ones (`ForgetSplit.true_labels`)."""

    primary: ClassVar[str] = "amount"
    amount: Amount = Field(
        0.5, gt=0, description="swapped samples of both classes together: a number, or a fraction of either class"
    )
    classes: tuple[int | str, int | str] = Field((0, 1), description="the two classes, by number or name")

    def select(self, train: Split, generator: torch.Generator) -> Tensor:
        first, second = (class_index(train, target) for target in self.classes)
        if first == second:
            raise UsageError(f"confusion: two different classes are needed, got {first} twice.")
        if self.amount >= 1 and self.amount % 2:
            raise UsageError(f"confusion: `amount` is split over two classes and must be even, got {self.amount:g}.")
        parts = []
        for number in (first, second):
            members = train.index[train.y == number]
            each = self.amount if self.amount < 1 else self.amount / 2
            parts.append(draw(members, count_of(each, len(members), "confusion: `amount`"), generator))
        return torch.cat(parts).sort().values

    def relabel(self, train: Split, forget: Tensor, generator: torch.Generator) -> Split:
        first, second = (class_index(train, target) for target in self.classes)
        labels = torch.empty(0, dtype=torch.long) if train.labels is None else train.labels.clone()
        labels[forget] = first + second - labels[forget]
        return train.with_labels(labels)
