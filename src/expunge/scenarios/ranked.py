"""Forget sets by a score per sample, read from a file: memorised samples, and the worst case.

A scenario is applied before there is a model, so the scores are computed beforehand (by `expunge memorise`, or any
program that writes a column `id` and a column `score`). The file must cover the whole training set; other rows are
ignored.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from expunge.core.options import Field
from expunge.data.scores import read_scores
from expunge.data.split import Split
from expunge.scenarios.base import Amount, Scenario, count_of, scenario_class

Level = Literal["low", "medium", "high"]
_SCORES = ".csv or .parquet with a column `id` (or `position`) and a column `score`, of `expunge memorise`"


def ranked(scores: Tensor, level: Level, generator: torch.Generator) -> Tensor:
    """Indices (n,) of scores (n,) in the order of selection: lowest, highest, or closest to the middle of their range.

    Equal scores are in random order, so the first k are a subset of the first k + 1 for one seed.
    """
    if level == "medium":
        scores = (scores - (scores.min() + scores.max()) / 2).abs()
    order = torch.randperm(len(scores), generator=generator)
    return order[scores[order].argsort(stable=True, descending=level == "high")]


def _take(train: Split, path: Path, level: Level, amount: float, name: str, generator: torch.Generator) -> Tensor:
    count = count_of(amount, len(train), f"{name}: `amount`")
    order = ranked(read_scores(path, train), level, generator)
    return train.index[order[:count]].sort().values


@scenario_class("memorised")
class Memorised(Scenario):
    """The samples of lowest, medium or highest score (Zhao et al.: memorisation decides the difficulty).

    medium: closest to the middle between the lowest and the highest score of the training set, 0.5 for memorisation
    from 0 to 1. Sets are nested in `amount`; the seed only orders samples of equal score.
    """

    primary: ClassVar[str] = "level"
    level: Level = Field("high", description="low, medium or high scores")
    amount: Amount = Field(0.1, gt=0, description="fraction below 1, or a number of samples")
    scores: Path = Field(..., description=_SCORES)

    def select(self, train: Split, generator: torch.Generator) -> Tensor:
        return _take(train, self.scores, self.level, self.amount, "memorised", generator)


@scenario_class("worst-case")
class WorstCase(Scenario):
    """The samples that are hardest to erase: those of highest score in a file of `expunge memorise --by worst-case`.

    The search (Fan et al.) needs a trained model, so it is done beforehand, for one size: give the same `amount`. The
    scenario only reads the result.
    """

    primary: ClassVar[str] = "scores"
    scores: Path = Field(..., description=_SCORES)
    amount: Amount = Field(0.1, gt=0, description="fraction below 1, or a number of samples")

    def select(self, train: Split, generator: torch.Generator) -> Tensor:
        return _take(train, self.scores, "high", self.amount, "worst-case", generator)
