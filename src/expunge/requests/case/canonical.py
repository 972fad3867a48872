"""One byte string for one value: the JSON that is hashed, and the plain values that it can hold."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from expunge.core.errors import UsageError


def canonical(value: Any) -> bytes:
    """JSON in UTF-8 with keys sorted by code point, no space between tokens, and no character escaped that need not be.

    Numbers are written as Python's `repr` writes them, the shortest text that reads back to the same number. Raises
    `ValueError` for NaN and infinite numbers, and for text that is not Unicode.

    >>> canonical({"b": [1, 0.5], "a": "ä"}).decode()
    '{"a":"ä","b":[1,0.5]}'
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def digest(value: Any) -> str:
    """Hex sha256 of the canonical JSON."""
    return hashlib.sha256(canonical(value)).hexdigest()


def timestamp(at: datetime) -> str:
    """UTC to the second, as in RFC 3339; a time without a zone is UTC already.

    >>> timestamp(datetime(2026, 3, 1, 12, 30, 5))
    '2026-03-01T12:30:05Z'
    """
    at = at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    return at.isoformat(timespec="seconds").replace("+00:00", "Z")


def plain(value: Any) -> Any:
    """`value` as JSON holds it: keys are text, times are `timestamp`s, NaN is null, infinity the text "inf" or "-inf".

    Raises `UsageError` for what JSON cannot hold.
    """
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, datetime):
        return timestamp(value)
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        return None if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if isinstance(value, Mapping):
        return {_text(str(key)): plain(one) for key, one in value.items()}
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, bytes | bytearray):
        return [plain(one) for one in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if hasattr(value, "item") and getattr(value, "size", 0) == 1:  # a scalar of NumPy
        return plain(value.item())
    raise UsageError(f"a case file cannot hold a value of type {type(value).__name__}; give plain numbers and text.")


def _text(value: str) -> str:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError(f"the text {value!r} is not valid Unicode; read its source with the right encoding.") from None
    return value
