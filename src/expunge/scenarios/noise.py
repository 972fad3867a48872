"""Label noise: the original model is trained on wrong labels of some samples; forgetting them should repair it."""

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


@scenario_class("noisy")
class NoisyLabels(Scenario):
    """Replace labels of random samples by wrong ones, uniform over the other classes, and forget these samples.

    The store keeps the true labels (`ForgetSplit.true_labels`).
    """

    primary: ClassVar[str] = "amount"
    amount: Amount = Field(0.1, gt=0, description="fraction below 1 or number, per class if `classes` is set")
    classes: tuple[int | str, ...] | None = Field(None, description="only samples of these classes; none: of all")

    def select(self, train: Split, generator: torch.Generator) -> Tensor:
        if train.num_classes < 2:
            raise UsageError("noisy: label noise needs at least 2 classes.")
        if self.classes is None:
            return draw(train.index, count_of(self.amount, len(train), "noisy: `amount`"), generator)
        parts = []
        for target in self.classes:
            members = train.index[train.y == class_index(train, target)]
            parts.append(draw(members, count_of(self.amount, len(members), "noisy: `amount`"), generator))
        return torch.cat(parts).sort().values

    def relabel(self, train: Split, forget: Tensor, generator: torch.Generator) -> Split:
        labels = train.y.new_empty(0) if train.labels is None else train.labels.clone()
        shift = 1 + torch.randint(train.num_classes - 1, (len(forget),), generator=generator)
        labels[forget] = (labels[forget] + shift) % train.num_classes
        return train.with_labels(labels)
