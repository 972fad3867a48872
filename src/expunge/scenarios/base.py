"""The base class of scenarios: frozen options that determine, with a seed, which samples form the forget set."""

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
class ForgetSplit:
    """A training set, partitioned into forget and retain set.

    Attributes:
        train: the original's training set, with wrong labels if the scenario corrupts labels.
        forget: the forget set.
        retain: the retain set, disjoint from it. Both are in ascending order of position, unless the scenario's order
            is meaningful.
        scenario: how it was selected.
        seed: of the selection.
        true_labels: long CPU tensor over the store; equals the labels of `train` unless the scenario changed some.
        sample: positions in the store of the retained samples that the published attack is trained on, in order, if the
            scenario's authors fixed them; else None.
        details: further facts, ready for JSON.
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
        """The forget set split at random into `scenario.requests` requests of (nearly) equal size.

        Raises:
            DataError: if there are more requests than samples.
        """
        count, size = self.scenario.requests, len(self.forget)
        if count > size:
            raise DataError(f"{self.scenario.card.name}: {count} requests for {size} samples; each needs at least one.")
        order = torch.randperm(size, generator=torch_generator(self.seed, "requests"))
        return [self.forget.take(self.forget.index[part]) for part in order.tensor_split(count)]

    def __repr__(self) -> str:
        parts = [("forget", f"{len(self.forget):,} samples"), ("retain", f"{len(self.retain):,} samples")]
        return display.as_text(f"{self.scenario.card.name}, seed {self.seed}", parts)

    def describe(self) -> dict[str, Any]:
        """Facts for reports, ready for JSON."""
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
    """A rule that selects the forget set: frozen options (fields) and `select`.

    Attributes:
        card: name and summary, from the registry.
        primary: the option that `name:value` on the command line sets.
    """

    card: ClassVar[Card]
    primary: ClassVar[str] = ""
    requests: int = Field(1, ge=1, description="number of consecutive requests the forget set is split into")
    with_copies: bool = Field(False, description="also forget exact copies of the chosen samples in the training set")

    @abstractmethod
    def select(self, train: Split, generator: torch.Generator) -> Tensor:
        """Select the forget set.

        Args:
            train: the training set.
            generator: seeded random numbers.

        Returns:
            Positions in the store (k,), each in `train`, without duplicates.
        """

    def relabel(self, train: Split, forget: Tensor, generator: torch.Generator) -> Split:
        """The training set of the original model; another one if the scenario corrupts labels."""
        return train

    def attacked(self, train: Split, forget: Tensor, generator: torch.Generator) -> Tensor | None:
        """Positions of the retained samples that the authors' membership attack is trained on; None: not fixed."""
        return None

    def generator(self, seed: int) -> torch.Generator:
        """Random numbers of the selection for a seed."""
        return torch.Generator().manual_seed(seed)

    @final
    def split(self, train: Split, seed: int = 0) -> ForgetSplit:
        """Partition `train`.

        Raises:
            DataError: if nothing or everything would be forgotten.
            UsageError: if `with_copies` is used with a scenario that changes labels.
        """
        generator = self.generator(seed)
        positions = self.select(train, generator)
        if self.with_copies:
            if type(self).relabel is not Scenario.relabel:
                raise UsageError(f"{self.card.name} changes labels, so `with_copies` is not supported; omit it.")
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
        relabelled = self.relabel(train, positions, generator)
        return ForgetSplit(
            train=relabelled,
            forget=relabelled.take(positions, "forget"),
            retain=relabelled.take(train.index[~chosen[train.index]], "retain"),
            scenario=self,
            seed=seed,
            true_labels=train.labels if train.labels is not None else torch.empty(0, dtype=torch.long),
            sample=self.attacked(train, positions, generator),
        )


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(Field,))
def scenario_class(name: str, *, summary: str = "") -> Callable[[type[C]], type[C]]:
    """Class decorator: make the class a validated frozen dataclass and register it under `name`.

    Args:
        name: what users write, e.g. "class".
        summary: one line for listings; built-in scenarios have their card in `expunge.scenarios`.
    """

    def decorate(cls: type[C]) -> type[C]:
        built = options(cls)
        built.card = SCENARIOS.card(name) if not summary else Card(name=name, summary=summary)
        SCENARIOS.add(built.card, built)
        return built

    return decorate


def make_scenario(name: str, given: Mapping[str, Any] | None = None) -> Scenario:
    """Build a scenario from its name and options; raises `UsageError` for unknown names and bad values."""
    name = SCENARIOS.named(name)
    return build(SCENARIOS.load(name), dict(given or {}), name)


def parse_scenario(text: str) -> Scenario:
    """`class:cat`, `random:0.1`, `class:target=cat,count=25`, `ids:0005,0017`, `where:user==4711`, `my.py:Mine`.

    >>> parse_scenario("class:cat,count=25").count
    25.0
    """
    name, _, rest = text.partition(":")
    if "." in name and rest:  # a class in a file or module of the user
        attribute, _, rest = rest.partition(":")
        name = SCENARIOS.named(f"{name}:{attribute}")
    cls = SCENARIOS.load(name)
    names = [f.name for f in fields(cls)]
    if not rest:
        return build(cls, {}, name)
    named = re.compile(rf"\s*({'|'.join(names)})=(?!=)")
    parts = rest.split(",")
    # Options come last; the text before them is the primary value, commas included.
    first = 0 if named.match(parts[0]) else len(parts)
    while first and named.match(parts[first - 1]):
        first -= 1
    values: dict[str, Any] = {}
    if cls.primary and first:
        unknown_part = next((part for part in parts[1:first] if re.match(r"\s*[a-z_]+=(?!=)", part)), None)
        if unknown_part is not None and first == len(parts):
            key = unknown_part.partition("=")[0].strip()
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
    """Refuse text such as `1.0`, which looks like all samples but would be one sample."""
    if isinstance(value, str) and re.fullmatch(r"\s*1\.0*\s*", value):
        raise ValueError("is a fraction below 1 (all samples cannot be forgotten) or a whole number; 1 is one sample")
    return value


Amount = Annotated[float, BeforeValidator(_amount)]


def count_of(amount: float, total: int, what: str) -> int:
    """Number of samples given by a fraction (< 1, truncated) or a count (>= 1, whole) of `total`.

    Raises:
        UsageError: naming `what`, if the count is not whole or exceeds `total`.
    """
    count = int(amount * total) if amount < 1 else int(amount)
    if amount >= 1 and amount != count:
        raise UsageError(f"{what} must be a fraction below 1 or a whole number, got {amount:g}.")
    if count > total:
        raise UsageError(f"{what} asks for {count} samples, but there are only {total}.")
    return count
