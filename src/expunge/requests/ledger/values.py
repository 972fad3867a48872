"""What may enter the ledger: text, hashes, numbers and JSON, checked where they come in, in one sentence."""

from __future__ import annotations

import json
import re
import unicodedata
from datetime import UTC, datetime
from typing import Any

from expunge.core.errors import UsageError

NAME = 200  # characters of a ticket, a batch, a person, a method, a file
REASON = 10_000  # characters of a reason or a message
_HASH = re.compile(r"[0-9a-f]{64}")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
_LARGEST_ID = 2**31 - 1  # of an INTEGER in PostgreSQL
_ALLOWED_CONTROLS = "\t\n\r"


def text(value: object, what: str, *, most: int = NAME, empty: bool = False) -> str:
    """`value` unchanged, or a `UsageError`: no text, empty, too long, or with characters that no database stores."""
    if not isinstance(value, str):
        raise UsageError(f"{what} must be text, got {type(value).__name__}.")
    if not value.strip() and not empty:
        raise UsageError(f"{what} must not be empty.")
    if len(value) > most:
        raise UsageError(f"{what} has {len(value)} characters; at most {most} are stored.")
    for place, character in enumerate(value):
        if _unprintable(character):
            raise UsageError(
                f"{what} holds the control or surrogate character U+{ord(character):04X} at position {place}; "
                "remove it, or read the source with its right encoding."
            )
    return value


def message(value: object) -> str:
    """What is said about a failure, made storable: a failure must be recorded whatever its words are."""
    said = "".join("�" if _unprintable(character) else character for character in str(value)[: REASON + 1])
    return said if len(said) <= REASON else said[: REASON - 1] + "…"


def hexhash(value: object, what: str) -> str:
    """64 lower-case hex digits. The value itself is not repeated: it could be the personal id that must not leak."""
    if not isinstance(value, str) or not _HASH.fullmatch(value):
        raise UsageError(
            f"{what} must be a hash of 64 lower-case hex digits; hash the id first, never pass it as it is."
        )
    return value


def filename(value: object, what: str) -> str:
    """A plain name inside the workspace's models/: no folder, no leading dot."""
    name = text(value, what)
    if not _FILE.fullmatch(name):
        raise UsageError(f"{what} must be a plain name of letters, digits, dots, dashes and underscores, got {name!r}.")
    return name


def number(value: object, what: str, *, least: int = 0, most: int = 2**63 - 1) -> int:
    """A whole number within bounds; raises `UsageError` otherwise."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        shown = repr(value) if isinstance(value, int) and abs(value) < 10**30 else type(value).__name__
        raise UsageError(f"{what} must be a whole number from {least} to {most}, got {shown}.")
    return value


def known_id(value: object, what: str) -> int:
    """A number that could be an id; that it names something is for the query to find out."""
    return number(value, what, least=1, most=_LARGEST_ID)


def canonical(value: Any) -> str:
    """JSON in one spelling: sorted keys, no spaces, ASCII, no NaN. Equal values, equal text."""
    return _ENCODER.encode(value)


def plain(value: Any, what: str) -> str:
    """Canonical JSON of `value` as it will be read back (keys as text), or a `UsageError`."""
    try:
        return canonical(json.loads(json.dumps(value, allow_nan=False)))
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"{what} must be plain JSON without NaN or infinity ({error}).") from None


def stamp(moment: datetime) -> str:
    """UTC with microseconds, in one spelling that sorts as time does."""
    if moment.tzinfo is None:
        raise UsageError(f"the time {moment.isoformat()} has no time zone; pass one in UTC.")
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def _unprintable(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs") and character not in _ALLOWED_CONTROLS
