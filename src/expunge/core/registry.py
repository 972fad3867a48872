"""Names to things: built-in cards that load lazily, and third parties through entry points.

A card says everything a list needs (`expunge list` imports neither torch nor scikit-learn); the thing itself is
imported on first use.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from expunge.core.errors import ExpungeError, unknown


@dataclass(frozen=True, kw_only=True)
class Paper:
    """Where a method or a metric was published."""

    cite: str  # "Kurmanji et al., Towards Unbounded Machine Unlearning, NeurIPS 2023"
    url: str  # a public address or an identifier such as "arXiv:2302.09880"


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a list shows of one registered thing.

    name: how users write it. summary: one line. target: "module:attribute" that holds it. needs: what it must be
    handed (`Needs` for methods, a phrase for the others). tags: free words, e.g. "exact", "iterative". requests: what a
    method is meant to forget: a whole class, single samples, wrong labels.
    """

    name: str
    summary: str
    target: str = ""
    paper: Paper | None = None
    needs: Any = None
    tags: tuple[str, ...] = ()
    requests: tuple[str, ...] = ("class", "samples", "labels")


class Registry:
    """All things of one kind ("method", "metric", ...)."""

    def __init__(self, kind: str, cards: Iterable[Card] = ()) -> None:
        self.kind = kind
        self.group = f"expunge.{kind}s"
        self._cards = {card.name: card for card in cards}
        self._loaded: dict[str, Any] = {}

    def names(self) -> list[str]:
        """Built-in and registered names in their order, then installed third-party ones."""
        return [*self._cards, *(name for name in self._plugins() if name not in self._cards)]

    def card(self, name: str) -> Card:
        """The card of `name`; a plug-in is imported for it. Raises `UsageError` on an unknown name."""
        if name not in self._cards:
            return self.load(name).card
        return self._cards[name]

    def cards(self) -> list[Card]:
        return [self.card(name) for name in self.names()]

    def add(self, card: Card, thing: Any) -> None:
        """Register `thing` for this process, e.g. from a notebook. A name can be taken once."""
        taken = self._cards.get(card.name)
        if taken is not None and taken != card:
            raise ExpungeError(f"the {self.kind} name `{card.name}` is already taken; choose another one.")
        self._cards[card.name] = card
        self._loaded[card.name] = thing

    def remove(self, name: str) -> None:
        """Undo `add` (tests register toys)."""
        self._cards.pop(name, None)
        self._loaded.pop(name, None)

    def load(self, name: str) -> Any:
        """The thing itself, imported on first use. Raises `UsageError` on an unknown name."""
        if name in self._loaded:
            return self._loaded[name]
        if name in self._cards:
            module, _, attribute = self._cards[name].target.partition(":")
            thing = getattr(importlib.import_module(module), attribute)
        elif name in self._plugins():
            thing = self._plugins()[name].load()
        else:
            raise unknown(self.kind, name, self.names())
        self._loaded[name] = thing
        return thing

    def _plugins(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=self.group)}
