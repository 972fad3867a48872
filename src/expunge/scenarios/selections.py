"""Selections: random samples, classes, single instances, explicit ids and positions, conditions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import BeforeValidator
from torch import Tensor

from expunge.core.errors import UsageError
from expunge.core.options import Field
from expunge.data.classes import INDEX, class_index
from expunge.data.ids import rows_by_id, rows_by_index, rows_where
from expunge.data.split import Split
from expunge.scenarios.base import Amount, Scenario, count_of, scenario_class


def draw(positions: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw `count` of `positions` (n,) without replacement; ascending."""
    chosen = torch.randperm(len(positions), generator=generator)[:count]
    return positions[chosen].sort().values


@scenario_class("random")
class RandomSamples(Scenario):
    """A random subset of the training set; `stratified` keeps the class shares (truncated per class)."""

    primary: ClassVar[str] = "amount"
    amount: Amount = Field(0.1, gt=0, description="fraction below 1, or a number of samples")
    stratified: bool = Field(False, description="draw the same fraction of every class")

    def select(self, train: Split, generator: torch.Generator) -> Tensor:
        if not self.stratified:
            return draw(train.index, count_of(self.amount, len(train), "random: `amount`"), generator)
        count = count_of(self.amount, len(train), "random: `amount`")
        share = self.amount if self.amount < 1 else count / len(train)
        parts = []
        for label in train.y.unique().tolist():
            members = train.index[train.y == label]
            parts.append(draw(members, int(share * len(members) + 1e-9), generator))
        return torch.cat(parts).sort().values


@scenario_class("class")
class OneClass(Scenario):
    """One class, whole or `count` samples of it (selective forgetting)."""

    primary: ClassVar[str] = "target"
    target: int | str = Field(..., description="name of the class, or index:3 for the class of index 3")
    count: Amount | None = Field(None, gt=0, description="fraction below 1 or number of samples; none: all")

    def select(self, train: Split, generator: torch.Generator) -> Tensor:
        members = train.index[train.y == class_index(train, self.target)]
        if self.count is None:
            return members
        return draw(members, count_of(self.count, len(members), "class: `count`"), generator)


def _fractions(value: Any) -> Any:
    """Fractions from `cat=0.4+dog=0.4` on the command line, or from a mapping, whose whole numbers are indices."""
    if isinstance(value, Mapping):
        return {f"{INDEX}{key}" if isinstance(key, int) else str(key): amount for key, amount in value.items()}
    if not isinstance(value, str):
        return value
    pairs = [part.partition("=") for part in value.split("+")]
    return {key: amount for key, _, amount in pairs}


@scenario_class("per-class")
class PerClass(Scenario):
    """A fraction of each named class, none of the others. Counts truncate: int(fraction x class size)."""

    primary: ClassVar[str] = "fractions"
    fractions: Annotated[dict[str, float], BeforeValidator(_fractions)] = Field(
        ..., min_length=1, description="class -> fraction in (0, 1]"
    )

    def select(self, train: Split, generator: torch.Generator) -> Tensor:
        parts = []
        for target, fraction in self.fractions.items():
            if not 0 < fraction <= 1:
                raise UsageError(f"per-class: the fraction of class {target} must be in (0, 1], got {fraction:g}.")
            members = train.index[train.y == class_index(train, target)]
            parts.append(draw(members, int(fraction * len(members)), generator))
        return torch.cat(parts).sort().values


@scenario_class("instances")
class Instances(Scenario):
    """The first k of one seeded permutation, so D_f(16) is a subset of D_f(64) for the same seed (L2UL)."""

    primary: ClassVar[str] = "k"
    k: int = Field(16, ge=1, description="number of instances")

    def select(self, train: Split, generator: torch.Generator) -> Tensor:
        count = count_of(self.k, len(train), "instances: `k`")
        return train.index[torch.randperm(len(train), generator=generator)[:count]]


@scenario_class("ids")
class ExplicitIds(Scenario):
    """The samples with these ids, compared as they are written (`007` is not `7`), or a boolean mask."""

    primary: ClassVar[str] = "ids"
    ids: Any = Field(..., description="ids separated by commas or in a list, or a .csv, .json or .txt file of ids")

    def select(self, train: Split, generator: torch.Generator) -> Tensor:
        return rows_by_id(self.ids, train)


@scenario_class("index")
class Positions(Scenario):
    """The samples at these positions of the data set, counted from 0, or a boolean mask."""

    primary: ClassVar[str] = "positions"
    positions: Any = Field(..., description="positions separated by commas or in a list, or a file of them")

    def select(self, train: Split, generator: torch.Generator) -> Tensor:
        return rows_by_index(self.positions, train)


@scenario_class("where")
class Where(Scenario):
    """All samples whose metadata satisfy a condition: `user == 4711`, `age < 18`, or a callable of the columns."""

    primary: ClassVar[str] = "condition"
    condition: Any = Field(..., description="expression over metadata columns, or a callable")

    def select(self, train: Split, generator: torch.Generator) -> Tensor:
        return rows_where(self.condition, train)
