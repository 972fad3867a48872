"""Atomic writing of files, and CSV that is safe to open in a spreadsheet."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.core.errors import ExpungeError

if TYPE_CHECKING:
    import pandas as pd


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8 atomically; see `write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: a reader sees the old content or the new one, never a part of it.

    Raises:
        ExpungeError: If the file cannot be written.
    """
    part = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        Path(part).chmod(0o644)
        Path(part).replace(path)
    except OSError as error:
        if part:
            Path(part).unlink(missing_ok=True)
        advice = "free some space or choose another folder"
        raise ExpungeError(f"cannot write {path} ({error.strerror}); {advice}.") from None


_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def csv_for_people(table: pd.DataFrame, *, exact: Collection[str] = ("id",), raw: bool = False) -> str:
    """A table as CSV without formulas.

    Spreadsheets interpret text that begins with `= + - @` (also after a tab or a line end) as a formula, so such cells
    and headings get a leading apostrophe. Numbers, and text that is a number, are not changed.

    Args:
        table: Any data frame; its index is omitted.
        exact: Columns that are not changed because rows are joined by them.
        raw: Change nothing.
    """
    if raw:
        return str(table.to_csv(index=False))
    safe = table.copy()
    for position, column in enumerate(table.columns):
        if column not in exact and not _numeric(table.dtypes.iloc[position]):
            safe.isetitem(position, [_as_text(value) for value in table.iloc[:, position]])
    safe.columns = [_as_text(column) for column in table.columns]
    return str(safe.to_csv(index=False))


def _numeric(kind: Any) -> bool:
    return getattr(kind, "kind", "O") in "iufbcmM"


def _as_text(value: Any) -> Any:
    if not isinstance(value, str) or not value.startswith(_FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value
