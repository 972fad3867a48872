"""Registries of named classes and objects: built-in cards that load lazily, and entry points of other packages.

A card contains everything that listings show (`expunge list` imports neither torch nor scikit-learn); the object itself
is imported on first use.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from expunge.core.errors import ExpungeError, UsageError, unknown
from expunge.core.user_code import is_user_code, load_user_code, split_preset

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Paper:
    """Where a method or a metric was published."""

    cite: str  # "Kurmanji et al., Towards Unbounded Machine Unlearning, NeurIPS 2023"
    url: str  # a public address or an identifier such as "arXiv:2302.09880"


@dataclass(frozen=True, kw_only=True)
class Card:
    """Description of a registered object.

    Attributes:
        name: what users write.
        summary: one line.
        target: "module:attribute" of the object.
        paper: where it was published.
        needs: required inputs (`Needs` for methods, a phrase for others).
        tags: keywords, e.g. "exact", "iterative".
        requests: what a method is meant to forget: a whole class, single samples, wrong labels.
    """

    name: str
    summary: str
    target: str = ""
    paper: Paper | None = None
    needs: Any = None
    tags: tuple[str, ...] = ()
    requests: tuple[str, ...] = ("class", "samples", "labels")


class Registry:
    """All objects of one kind ("method", "metric", ...): built in, registered in this process, or entry points.

    Args:
        kind: its name in messages.
        cards: the built-in objects.
        decorator: how users register their own, for messages.
    """

    def __init__(self, kind: str, cards: Iterable[Card] = (), *, decorator: str = "") -> None:
        self.kind = kind
        self.group = f"expunge.{kind}s"
        self.decorator = decorator
        self._cards = {card.name: card for card in cards}
        self._loaded: dict[str, Any] = {}
        self._broken: set[str] = set()

    def names(self) -> list[str]:
        """Built-in and registered names, then those of installed packages; nothing is imported."""
        return [*self._cards, *(name for name in self._plugins() if name not in self._cards)]

    def usable(self) -> list[str]:
        """`names` without the third-party ones that cannot be loaded; a warning is logged once for each of those."""
        return [name for name in self.names() if name in self._cards or self._works(name)]

    def card(self, name: str) -> Card:
        """The card of `name`, for which a plug-in is imported; raises `UsageError` for an unknown name."""
        if name not in self._cards:
            card: Card = self.load(name).card
            return card
        return self._cards[name]

    def cards(self) -> list[Card]:
        """The cards of all `usable` names."""
        return [self.card(name) for name in self.usable()]

    def add(self, card: Card, thing: Any) -> None:
        """Register an object for this process, e.g. from a notebook.

        A name can be taken once; a module that runs again, such as an edited cell, replaces its own.

        Raises:
            ExpungeError: if the name belongs to something else.
        """
        existing = self._cards.get(card.name)
        if existing is not None and existing != card:
            former = getattr(self._loaded.get(card.name), "__module__", None)
            if former is None or former != getattr(thing, "__module__", ""):
                raise ExpungeError(f"the {self.kind} name `{card.name}` is already taken; choose another name.")
        self._cards[card.name] = card
        self._loaded[card.name] = thing

    def remove(self, name: str) -> None:
        """Undo `add`, for tests."""
        self._cards.pop(name, None)
        self._loaded.pop(name, None)

    def named(self, spec: str) -> str:
        """The name that something a user wrote is registered under, after its file or module was imported.

        Only what a user typed belongs in `spec`: names from stored files go to `load`, which runs no code of theirs.

        Args:
            spec: `path/to/file.py:name` or `package.module:name`, with `/preset` if wanted; a name stays.

        Raises:
            UsageError: if it cannot be imported, or is not of this kind.
        """
        if not is_user_code(spec):
            return spec
        place, preset = split_preset(spec)
        card = getattr(load_user_code(place, self.kind), "card", None)
        if not isinstance(card, Card) or card.name not in self._loaded:
            register = f": register it with {self.decorator}" if self.decorator else ""
            raise UsageError(f"`{place}` is no {self.kind}{register}.")
        return f"{card.name}/{preset}" if preset else card.name

    def load(self, name: str) -> Any:
        """The object, imported on first use; raises `UsageError` if the name is unknown or cannot be loaded."""
        if name in self._loaded:
            return self._loaded[name]
        if name in self._cards:
            module, _, attribute = self._cards[name].target.partition(":")
            thing = getattr(importlib.import_module(module), attribute)
        elif name in self._plugins():
            thing = self._from_package(name)
        else:
            raise unknown(self.kind, name, self.names())
        self._loaded[name] = thing
        return thing

    def _from_package(self, name: str) -> Any:
        point = self._plugins()[name]
        of_package = f" of package {point.dist.name} {point.dist.version}" if point.dist is not None else ""
        try:
            thing = point.load()
        except (Exception, SystemExit) as error:  # another's code may raise anything; the message names it
            reason = f"{type(error).__name__}: {error}"
            raise UsageError(
                f"the {self.kind} `{name}` ({point.value}{of_package}) cannot be loaded: {reason}; update or uninstall "
                "that package."
            ) from error
        if not isinstance(getattr(thing, "card", None), Card):
            register = f"; its author registers it with {self.decorator}" if self.decorator else ""
            raise UsageError(f"`{point.value}`{of_package} is no {self.kind}{register}.")
        return thing

    def _works(self, name: str) -> bool:
        if name in self._broken:
            return False
        try:
            self.load(name)
        except UsageError as error:
            self._broken.add(name)
            log.warning("%s It is left out.", error)
            return False
        return True

    def _plugins(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=self.group)}
