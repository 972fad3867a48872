"""Errors that teach: the thing, the value, what was allowed, and the next step, in one sentence.

Two families decide the exit code of the command line: `UsageError` (2: the request cannot be right) and
every other `ExpungeError` (1: a right request failed).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST = 120  # characters of a text of the caller that a message repeats


class ExpungeError(Exception):
    """A request that was understood and failed; exit code 1."""

    exit_code = 1


class UsageError(ExpungeError, ValueError):
    """A request that cannot be right as written; exit code 2."""

    exit_code = 2


class AccessError(ExpungeError):
    """A method reached for data that it did not declare it needs."""


class DivergedError(ExpungeError):
    """A loss or a weight became NaN or infinite."""


class DataError(UsageError):
    """Data that cannot be read, or that contradicts itself or the model."""


class CheckpointError(UsageError):
    """A checkpoint that is truncated, foreign, or that would run code when loaded."""


class Cancelled(ExpungeError):
    """The caller asked a run to stop before it was finished."""


class EffectWarning(UserWarning):
    """An unlearning that did nothing, or that damaged the model; see `expunge.api.effect`."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Half a sentence that names the closest allowed value and the whole list.

    >>> nearest("scrbu", ["lau", "scrub"])
    'did you mean `scrub`? Allowed: lau, scrub'
    """
    names = sorted(allowed)
    # The comparison takes quadratic time, and nothing is near to a text of that length.
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5) if len(str(name)) <= LONGEST else []
    hint = f"did you mean `{close[0]}`? " if close else ""
    return f"{hint}{'Allowed' if hint else 'allowed'}: {', '.join(names) or 'none'}"


def unknown(kind: str, name: str, allowed: Iterable[str]) -> UsageError:
    """The one wording for a name that does not exist."""
    return UsageError(f"unknown {kind} `{shorten(name)}`; {nearest(name, allowed)}.")


def shorten(text: str, most: int = LONGEST) -> str:
    """A text as messages show it: at most `most` characters.

    >>> shorten("abcdefgh", 6)
    'abc...'
    """
    return text if len(text) <= most else f"{text[: most - 3]}..."
