"""Which state may follow which, and what each step of a fulfilment brings along. Nothing else decides either."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from expunge.core.errors import UsageError
from expunge.requests.records import State, Step

# A request and the fulfilment it is part of move together, so one table serves both.
MOVES: Mapping[State, frozenset[State]] = MappingProxyType(
    {
        "received": frozenset({"planned", "rejected"}),
        "planned": frozenset({"running", "failed"}),
        "running": frozenset({"fulfilled", "failed"}),
        "fulfilled": frozenset({"rolled back"}),
        "failed": frozenset({"received"}),
        "rolled back": frozenset({"received"}),
        "rejected": frozenset(),
    }
)
OPEN: tuple[State, ...] = ("received", "planned", "running")
UNFINISHED: tuple[State, ...] = ("planned", "running")

# What `advance` stores with a step: names of its arguments that must be given, and that may be given.
BRINGS: Mapping[Step, tuple[frozenset[str], frozenset[str]]] = MappingProxyType(
    {
        "planned": (frozenset(), frozenset()),
        "unlearned": (frozenset({"version"}), frozenset({"version", "facts"})),
        "audited": (frozenset({"audit"}), frozenset({"audit"})),
        "recorded": (frozenset({"case"}), frozenset({"case"})),
        "done": (frozenset(), frozenset()),
    }
)


def check_move(what: str, current: State, target: State) -> None:
    """Refuse a change of state that MOVES does not allow. what: "request 12"."""
    if target not in MOVES[current]:
        before = [state for state in MOVES if target in MOVES[state]]
        raise UsageError(f"{what} is {current}; only one that is {' or '.join(before)} can become {target}.")


def check_brought(what: str, step: Step, given: frozenset[str]) -> None:
    """Refuse a step without what belongs to it, or with what does not."""
    needed, allowed = BRINGS[step]
    if missing := needed - given:
        raise UsageError(f"{what}: step `{step}` needs `{'`, `'.join(sorted(missing))}`.")
    if excess := given - allowed:
        raise UsageError(
            f"{what}: step `{step}` does not store `{'`, `'.join(sorted(excess))}`; "
            f"allowed: {', '.join(sorted(allowed)) or 'nothing'}."
        )
