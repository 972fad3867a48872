"""Tables of suspected labels from disk: CSV, Parquet or JSON to a frame of text, with limits on what is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from expunge.core.errors import DataError

SUFFIXES = (".csv", ".json", ".parquet")
MOST_BYTES = 256 * 2**20  # a row has about 60 bytes: four million samples
POSITION = "position"  # the name given to an index that was written without one


def read_table(path: Path, rows: int) -> pd.DataFrame:
    """The table in a file, every value as text ("" where there is none), columns in small letters.

    rows: the most that a list about these data can have. A column without a name (the index that pandas writes) is
    called `position`. JSON: a list of records, a list of ids or positions, or an object of columns, as pandas writes.

    Raises `DataError` naming the file if it is missing, too large, of another type, not UTF-8, or not a table.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"suspects are read from {', '.join(SUFFIXES)} files, got {path}.")
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise DataError(
                f"{path} has {size / 2**20:,.0f} MiB; a list of suspects may have {MOST_BYTES // 2**20}: "
                "keep the columns of labels and scores only."
            )
        table = {".csv": _csv, ".json": _json, ".parquet": _parquet}[suffix](path, rows)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from None
    except (OSError, RecursionError, ValueError, pa.ArrowException) as error:  # DataError is a ValueError, too
        raise error if isinstance(error, DataError) else DataError(f"cannot read {path} ({_reason(error)}).") from None
    if len(table) > rows:
        raise DataError(f"{path} has more rows than the {rows:,} samples of the data; it must be about other data.")
    if not len(table):
        raise DataError(f"{path} has no rows; give at least one suspect.")
    return with_plain_names(table, str(path))


def with_plain_names(table: pd.DataFrame, source: str) -> pd.DataFrame:
    """Columns in small letters, a nameless one called `position`; `DataError` if two are the same then."""
    names = [str(name).strip().lower() for name in table.columns]
    plain = pd.Index([POSITION if not name or name.startswith("unnamed:") else name for name in names])
    twice = plain[plain.duplicated()]
    if len(twice):
        raise DataError(f"{source}: the column `{twice[0]}` stands there more than once; keep one of them.")
    return table.set_axis(plain, axis=1)


def as_text(table: pd.DataFrame) -> pd.DataFrame:
    """Every value as text: whole numbers without a point, "" where there is none."""
    return pd.DataFrame({name: table[name].map(_text).to_numpy(dtype=object) for name in table.columns})


def _csv(path: Path, rows: int) -> pd.DataFrame:
    # No quoting over lines can hide: one row more than allowed is enough to refuse the file.
    return pd.read_csv(
        path, dtype=str, keep_default_na=False, encoding="utf-8-sig", nrows=rows + 1, skipinitialspace=True
    )


def _parquet(path: Path, rows: int) -> pd.DataFrame:
    facts = pq.read_metadata(path)
    inflated = sum(facts.row_group(group).total_byte_size for group in range(facts.num_row_groups))
    if facts.num_rows > rows or inflated > MOST_BYTES:
        raise DataError(
            f"{path} holds {facts.num_rows:,} rows and {inflated / 2**20:,.0f} MiB; the data have {rows:,} samples, "
            f"and a list of suspects may have {MOST_BYTES // 2**20} MiB."
        )
    table = pd.read_parquet(path)
    if not isinstance(table.index, pd.RangeIndex):
        table = table.reset_index(names=table.index.name or POSITION)
    return as_text(table)


def _json(path: Path, rows: int) -> pd.DataFrame:
    content = json.loads(path.read_text(encoding="utf-8-sig"))
    if isinstance(content, list) and all(isinstance(row, dict) for row in content):
        table = pd.DataFrame.from_records(content[: rows + 1])
    elif isinstance(content, list) and all(isinstance(row, (str, int)) for row in content):
        table = pd.DataFrame({"id": content[: rows + 1]})
    elif isinstance(content, dict) and content and all(isinstance(column, dict) for column in content.values()):
        table = pd.DataFrame(content)  # as DataFrame.to_json writes: column -> row -> value
        table = table.reset_index(names=POSITION)
    else:
        raise DataError(f"{path} must hold a list of records, a list of ids, or columns as pandas writes them.")
    return as_text(table)


def _text(value: Any) -> str:
    if value is None or isinstance(value, (list, dict)) or value is pd.NA:
        return ""
    if isinstance(value, (float, np.floating)):
        number = float(value)
        if np.isnan(number):
            return ""
        return str(int(number)) if number.is_integer() else repr(number)
    return str(value)


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
