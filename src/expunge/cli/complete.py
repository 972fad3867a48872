"""Shell completion of names: reads catalogues only, so it answers at once."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from expunge.core.errors import unknown
from expunge.core.registry import Registry

_HOMES = {
    "methods": "expunge.methods:METHODS",
    "metrics": "expunge.metrics:METRICS",
    "scenarios": "expunge.scenarios:SCENARIOS",
    "models": "expunge.models:MODELS",
    "datasets": "expunge.data:DATASETS",
}
KINDS = tuple(_HOMES)


def catalogue(kind: str) -> Registry:
    """The registry of `methods`, `method`, ...; `UsageError` on another word."""
    plural = kind if kind.endswith("s") else f"{kind}s"
    if plural not in _HOMES:
        raise unknown("kind of thing", kind, KINDS)
    module, _, name = _HOMES[plural].partition(":")
    registry: Registry = getattr(import_module(module), name)
    return registry


def kinds(incomplete: str) -> list[str]:
    """Kinds of catalogue entries that begin with the text."""
    return [kind for kind in KINDS if kind.startswith(incomplete)]


def names_of(kind: str) -> Callable[[str], list[str]]:
    """A function that completes names of one kind."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in catalogue(kind).names() if name.startswith(incomplete)]

    return complete
