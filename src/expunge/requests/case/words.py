"""Times, hashes, counts and foreign text as the page and the PDF of a case show them."""

from __future__ import annotations

import re
from datetime import datetime

_LONGEST = 300  # characters of a reason that are shown
_MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]  # fmt: skip  (not the locale's: equal cases give equal pages)


def short(digest: str) -> str:
    """Enough of a hash to tell it from others."""
    return digest[:12]


def day(stamp: str) -> str:
    """The date of a time of the case, for people.

    >>> day("2026-03-01T12:30:05Z")
    '1 March 2026'
    """
    at = moment(stamp)
    return f"{at.day} {_MONTHS[at.month - 1]} {at.year}"


def minute(stamp: str) -> str:
    """A time stamp as text.

    >>> minute("2026-03-01T12:30:05Z")
    '1 March 2026, 12:30 UTC'
    """
    return f"{day(stamp)}, {moment(stamp):%H:%M} UTC"


def visible(text: str) -> str:
    """One line that shows what it holds: no control characters, nothing that turns the direction of writing."""
    line = re.sub(r"\s+", " ", text).strip()
    line = re.sub(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", "\ufffd", line)
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"


def count(number: int, noun: str) -> str:
    """A number with its noun.

    >>> count(1, "sample"), count(1200, "sample")
    ('1 sample', '1,200 samples')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Seconds as text.

    >>> duration(12.34), duration(600), duration(9000)
    ('12.3 s', '10 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def moment(stamp: str) -> datetime:
    """The time that `canonical.timestamp` wrote."""
    return datetime.fromisoformat(stamp)
