"""Errors, each with one sentence that names the thing, the value, what is allowed, and the next step.

Two families determine the exit code of the command line: `UsageError` (2: an invalid request) and every other
`ExpungeError` (1: a valid request that failed).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST = 120  # characters of a caller's text that a message quotes


class ExpungeError(Exception):
    """A valid request that failed; exit code 1."""

    exit_code = 1


class UsageError(ExpungeError, ValueError):
    """An invalid request; exit code 2."""

    exit_code = 2


class AccessError(ExpungeError):
    """A method accessed data that it did not declare."""


class DivergedError(ExpungeError):
    """A loss or a weight became NaN or infinite."""


class DataError(UsageError):
    """Data that cannot be read, or that are inconsistent with themselves or the model."""


class CheckpointError(UsageError):
    """A checkpoint that is truncated, of another format, or that would run code when loaded."""


class Cancelled(ExpungeError):
    """The caller stopped a run before it was finished."""


class EffectWarning(UserWarning):
    """An unlearning had no effect, or damaged the model; see `expunge.api.effect`."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """End of a message that names the closest allowed value and all allowed values.

    >>> nearest("scrbu", ["lau", "scrub"])
    'did you mean `scrub`? Allowed: lau, scrub'
    """
    names = sorted(allowed)
    # The comparison takes quadratic time, and no name is close to a text of that length.
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5) if len(str(name)) <= LONGEST else []
    hint = f"did you mean `{close[0]}`? " if close else ""
    return f"{hint}{'Allowed' if hint else 'allowed'}: {', '.join(names) or 'none'}"


def unknown(kind: str, name: str, allowed: Iterable[str]) -> UsageError:
    """The error for a name that does not exist."""
    return UsageError(f"unknown {kind} `{shorten(name)}`; {nearest(name, allowed)}.")


def shorten(text: str, most: int = LONGEST) -> str:
    """A text shortened to at most `most` characters, for messages.

    >>> shorten("abcdefgh", 6)
    'abc...'
    """
    return text if len(text) <= most else f"{text[: most - 3]}..."
