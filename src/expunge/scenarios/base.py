"""Scenarios: frozen options that decide, exactly and by seed, which training samples form the forget set."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, ClassVar, TypeVar, dataclass_transform, final

import torch
from pydantic import BeforeValidator
from torch import Tensor

from expunge.core import display
from expunge.core.errors import DataError, UsageError, nearest, shorten
from expunge.core.options import Field, build, options, to_dict
from expunge.core.registry import Card
from expunge.core.seeds import torch_generator
from expunge.data.duplicates import with_copies
from expunge.data.split import Split
from expunge.scenarios import SCENARIOS

C = TypeVar("C", bound="Scenario")


@dataclass(frozen=True, eq=False, repr=False)
class Forgetting:
    """A training set and its partition.

    train: what the original model is trained on (with noisy labels where the scenario makes noise). forget, retain:
    its two disjoint parts, in ascending order of position unless the scenario's order means something.
    true_labels: long CPU tensor over the store; equals the labels of `train` unless the scenario changed some.
    sample: positions in the store of the retained samples that the published attack learns from, in this order, where
    the scenario's authors fixed them; else None.
    """

    train: Split
    forget: Split
    retain: Split
    scenario: Scenario
    seed: int
    true_labels: Tensor
    sample: Tensor | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def requests(self) -> list[Split]:
        """The forget set as `scenario.requests` requests of (nearly) equal size, in an order drawn by the seed."""
        count, size = self.scenario.requests, len(self.forget)
        if count > size:
            raise DataError(f"{self.scenario.card.name}: {count} requests for {size} samples; each needs at least one.")
        order = torch.randperm(size, generator=torch_generator(self.seed, "requests"))
        return [self.forget.take(self.forget.index[part]) for part in order.tensor_split(count)]

    def __repr__(self) -> str:
        parts = [("forget", f"{len(self.forget):,} samples"), ("retain", f"{len(self.retain):,} samples")]
        return display.as_text(f"{self.scenario.card.name}, seed {self.seed}", parts)

    def describe(self) -> dict[str, Any]:
        """JSON-ready facts for reports."""
        return {
            "scenario": self.scenario.card.name,
            "options": to_dict(self.scenario),
            "seed": self.seed,
            "forget": len(self.forget),
            "retain": len(self.retain),
            **self.details,
        }


@options
class Scenario(ABC):
    """primary: the option that `name:value` on the command line sets."""

    card: ClassVar[Card]
    primary: ClassVar[str] = ""
    requests: int = Field(1, ge=1, description="number of consecutive requests the forget set is split into")
    with_copies: bool = Field(False, description="also forget exact copies of the chosen samples in the training set")

    @abstractmethod
    def select(self, train: Split, generator: torch.Generator) -> Tensor:
        """Positions in the store of the samples to forget, each one of `train`, no duplicates."""

    def relabel(self, train: Split, forget: Tensor, generator: torch.Generator) -> Split:
        """The training set the original model sees; the same unless the scenario spoils labels."""
        return train

    def attacked(self, train: Split, forget: Tensor, generator: torch.Generator) -> Tensor | None:
        """Positions of the retained samples that the authors' membership attack learns from; None: not fixed."""
        return None

    def generator(self, seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    @final
    def split(self, train: Split, seed: int = 0) -> Forgetting:
        """Partition `train`. Raises `DataError` if nothing or everything would be forgotten."""
        generator = self.generator(seed)
        positions = self.select(train, generator)
        if self.with_copies:
            if type(self).relabel is not Scenario.relabel:
                raise UsageError(f"{self.card.name} changes labels, so `with_copies` is not offered; leave it out.")
            positions = with_copies(train, positions)
        chosen = torch.zeros(len(train.store), dtype=torch.bool)
        chosen[positions] = True
        name = self.card.name
        if len(positions) == 0:
            raise DataError(f"{name}: no sample of {train.name} matches, so there is nothing to forget.")
        if int(chosen.sum()) != len(positions) or not bool(torch.isin(positions, train.index).all()):
            raise DataError(f"{name}: the selection repeats samples or leaves the training set.")
        if len(positions) == len(train):
            raise DataError(f"{name}: this forgets all {len(train)} samples; keep at least one to retain.")
        seen = self.relabel(train, positions, generator)
        return Forgetting(
            train=seen,
            forget=seen.take(positions, "forget"),
            retain=seen.take(train.index[~chosen[train.index]], "retain"),
            scenario=self,
            seed=seed,
            true_labels=train.labels if train.labels is not None else torch.empty(0, dtype=torch.long),
            sample=self.attacked(train, positions, generator),
        )


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(Field,))
def scenario_class(name: str, *, summary: str = "") -> Callable[[type[C]], type[C]]:
    """Class decorator: validated frozen dataclass, registered under `name`."""

    def decorate(cls: type[C]) -> type[C]:
        made = options(cls)
        made.card = SCENARIOS.card(name) if not summary else Card(name=name, summary=summary)
        SCENARIOS.add(made.card, made)
        return made

    return decorate


def make_scenario(name: str, given: Mapping[str, Any] | None = None) -> Scenario:
    name = SCENARIOS.named(name)
    return build(SCENARIOS.load(name), dict(given or {}), name)


def parse_scenario(text: str) -> Scenario:
    """`class:cat`, `random:0.1`, `class:target=cat,count=25`, `ids:0005,0017`, `where:user==4711`, `my.py:Mine`.

    >>> parse_scenario("class:cat,count=25").count
    25.0
    """
    name, _, rest = text.partition(":")
    if "." in name:  # a file or a module: a class of the user
        attribute, _, rest = rest.partition(":")
        name = SCENARIOS.named(f"{name}:{attribute}")
    cls = SCENARIOS.load(name)
    names = [f.name for f in fields(cls)]
    if not rest:
        return build(cls, {}, name)
    named = re.compile(rf"\s*({'|'.join(names)})=(?!=)")
    parts = rest.split(",")
    # Options stand last; what is before the first of them is the primary value, commas included.
    first = 0 if named.match(parts[0]) else len(parts)
    while first and named.match(parts[first - 1]):
        first -= 1
    values: dict[str, Any] = {}
    if cls.primary and first:
        stray = next((part for part in parts[1:first] if re.match(r"\s*[a-z_]+=(?!=)", part)), None)
        if stray is not None and first == len(parts):
            key = stray.partition("=")[0].strip()
            raise UsageError(f"{name} has no option `{shorten(key)}`; {nearest(key, names)}.")
        values[cls.primary] = ",".join(parts[:first])
        parts = parts[first:]
    for part in parts:
        key, equals, value = part.strip().partition("=")
        if not equals:
            raise UsageError(f"{name}: expected option=value, got `{shorten(part)}`; {nearest(key, names)}.")
        values[key] = value
    return build(cls, values, name)


def _amount(value: Any) -> Any:
    """Text such as `1.0` reads like "all of it" but would be one sample: refused, so that nobody is surprised."""
    if isinstance(value, str) and re.fullmatch(r"\s*1\.0*\s*", value):
        raise ValueError("is a fraction below 1 (all samples cannot be forgotten) or a whole number; 1 is one sample")
    return value


Amount = Annotated[float, BeforeValidator(_amount)]


def count_of(amount: float, total: int, what: str) -> int:
    """A number of samples from a fraction (< 1, truncated) or a count (>= 1, whole)."""
    count = int(amount * total) if amount < 1 else int(amount)
    if amount >= 1 and amount != count:
        raise UsageError(f"{what} must be a fraction below 1 or a whole number, got {amount:g}.")
    if count > total:
        raise UsageError(f"{what} asks for {count} samples, but there are only {total}.")
    return count
