"""Requests as they come in, by hand or as a file of tickets: checked before anything is stored."""

from __future__ import annotations

import csv
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from expunge.core.errors import DataError, UsageError, nearest

COLUMNS = ("subject", "reason", "ticket", "batch")
LARGEST = 64 * 2**20  # bytes of a file of tickets; a million lines of 64 characters
_LONGEST = {"subject": 512, "reason": 10_000, "ticket": 200, "batch": 100}


@dataclass(frozen=True, kw_only=True)
class Wish:
    """One request before it is stored: `subject` is the id of a person or record, as the data write it."""

    subject: str
    reason: str = ""
    ticket: str | None = None
    batch: str = ""


def make_wish(*, subject: str, reason: str = "", ticket: str | None = None, batch: str = "") -> Wish:
    """Raises `UsageError` for an empty subject, text that is too long, and characters that no ledger should hold."""
    values = {"subject": subject, "reason": reason, "ticket": ticket or "", "batch": batch}
    made = {name: _clean(name, value) for name, value in values.items()}
    if not made["subject"]:
        raise UsageError("a request needs a subject: the id of the person or record to be forgotten.")
    return Wish(subject=made["subject"], reason=made["reason"], ticket=made["ticket"] or None, batch=made["batch"])


def _clean(name: str, value: str) -> str:
    if not isinstance(value, str):
        raise UsageError(f"`{name}` must be text, got {type(value).__name__}.")
    text = unicodedata.normalize("NFC", value).strip()
    if len(text) > _LONGEST[name]:
        raise UsageError(f"`{name}` has {len(text):,} characters; {_LONGEST[name]:,} are allowed.")
    strange = next((c for c in text if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t"), None)
    if strange is not None or (name != "reason" and any(c in text for c in "\n\t")):
        what = f"U+{ord(strange):04X}" if strange is not None else "a line break or tab"
        raise UsageError(f"`{name}` holds a character that is no text ({what}); take it out.")
    return text


def read_tickets(path: Path) -> list[Wish]:
    """Requests from a CSV file, as `parse_tickets` reads it. Raises `DataError` also for one that is too large."""
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise DataError(f"{path} has {size:,} bytes; at most {LARGEST:,} are read at once: split the file.")
        return parse_tickets(path.read_bytes(), str(path))
    except OSError as error:
        raise DataError(f"cannot read {path} ({error.strerror}).") from None


def parse_tickets(content: bytes, name: str) -> list[Wish]:
    """Requests from CSV in UTF-8 with the column `subject`, and those of reason, ticket and batch that it has.

    name: what errors call it. Raises `DataError` naming the line: nothing of a file with a fault in it is taken.
    """
    try:
        text = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from None
    wishes = list(_rows(text, name))
    if not wishes:
        raise DataError(f"{name} holds no requests.")
    return wishes


def _rows(text: str, name: str) -> Iterator[Wish]:
    reader = csv.reader(text.splitlines(keepends=True), strict=True)
    try:
        header = [column.strip().lower() for column in next(reader, [])]
        for column in header:
            if column not in COLUMNS:
                raise DataError(f"{name} has a column `{column[:40]}`; {nearest(column[:40], COLUMNS)}.")
        if "subject" not in header or len(set(header)) < len(header):
            raise DataError(f"{name} needs one column `subject` in its first line; allowed: {', '.join(COLUMNS)}.")
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(header):
                raise DataError(f"{name}, line {reader.line_num}: {len(row)} values for {len(header)} columns.")
            try:
                yield make_wish(**dict(zip(header, row, strict=True)))
            except UsageError as error:
                raise DataError(f"{name}, line {reader.line_num}: {error}") from None
    except csv.Error as error:
        raise DataError(f"{name}, line {reader.line_num}: not valid CSV ({error}).") from None
