"""Scores per sample, written as CSV or Parquet with sample ids, and read for any subset of the same data.

A score file has a column `id` (or `position`, counted in the store) and columns of numbers; scenarios rank by the
column `score`, larger meaning more memorised or harder. Rows of other samples are ignored, so one file serves every
subset of its data set.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor

from expunge.core.errors import DataError, ExpungeError, UsageError
from expunge.data.split import Split
from expunge.data.values import as_text, from_arrow, ids_of_cells, keys, whole_numbers

SUFFIXES = (".csv", ".parquet")
KEYS = ("id", "position")


@dataclass(frozen=True, eq=False)
class SampleScores:
    """Scores of the samples of one split, in its order.

    Attributes:
        by: how they were computed.
        ids: text (n,).
        positions: in the store (n,).
        columns: name -> numbers (n,); among them `score`, NaN if unknown.
        facts: what is needed to compute them again, ready for JSON.
        notes: remarks for the reader.
    """

    by: str
    ids: np.ndarray
    positions: np.ndarray
    columns: Mapping[str, np.ndarray]
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, split: Split, by: str, columns: Mapping[str, np.ndarray], **more: Any) -> SampleScores:
        """Scores of `split` from their columns; `more` are further attributes."""
        return cls(by, split.ids, split.index.numpy(), columns, **more)

    @property
    def score(self) -> np.ndarray:
        """The column `score` (n,)."""
        return self.columns["score"]

    def __len__(self) -> int:
        return len(self.ids)

    def frame(self) -> pd.DataFrame:
        """One row per sample: id, position, score and the numbers it was computed from."""
        return pd.DataFrame({"id": self.ids, "position": self.positions, **self.columns})

    def save(self, path: Path) -> Path:
        """Write the table as .csv or .parquet atomically; returns the path.

        Raises:
            UsageError: for another suffix.
            ExpungeError: if the file cannot be written.
        """
        check_suffix(path)
        table = self.frame()
        if path.suffix.lower() == ".csv":
            content = table.to_csv(index=False).encode()
        else:
            buffer = io.BytesIO()
            table.to_parquet(buffer, index=False)
            content = buffer.getvalue()
        part = ""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
            Path(part).chmod(0o644)
            Path(part).replace(path)
        except OSError as error:
            if part:
                Path(part).unlink(missing_ok=True)
            raise ExpungeError(f"cannot write {path} ({error.strerror or error}); choose another file.") from None
        return path


def check_suffix(path: Path) -> None:
    """Raise `UsageError` unless scores can be written to a file of that suffix."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"scores are written to {' or '.join(SUFFIXES)} files, got {path}.")


def read_scores(path: Path, split: Split, column: str = "score") -> Tensor:
    """Read the scores of a split's samples.

    Args:
        path: a .csv or .parquet file.
        split: the samples.
        column: the scores.

    Returns:
        Float64 (len(split),), in the split's order.

    Raises:
        DataError: if the file cannot be read, has no such column, repeats or lacks a sample of the split, or has no
            finite number for one.
    """
    table = _aligned(path, split)
    if column not in table.columns:
        numbers = [name for name in table.columns if name not in KEYS]
        raise DataError(f"{path} has no column `{column}`; it has: {', '.join(numbers) or 'none beside the samples'}.")
    return _numbers(table[[column]], path, split)[:, 0]


def read_features(path: Path, split: Split) -> Tensor:
    """Read a feature vector per sample of a split.

    Args:
        path: a .npy file with one row per sample of the whole data set (store), in its order; or a .csv or .parquet
            file with a column `id` or `position`, whose other columns are features.
        split: the samples.

    Returns:
        Float32 (len(split), d), in the split's order.

    Raises:
        DataError: as in `read_scores`.
    """
    if path.suffix.lower() != ".npy":
        table = _aligned(path, split)
        features = table.drop(columns=[name for name in KEYS if name in table.columns])
        if features.shape[1] == 0:
            raise DataError(f"{path} has no column of features beside those that name the samples.")
        return _numbers(features, path, split).float()
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"cannot read {path} ({_reason(error)}); give a .npy file of numbers.") from None
    if array.ndim != 2 or len(array) != len(split.store) or array.shape[1] == 0 or array.dtype.kind not in "fiu":
        raise DataError(
            f"{path} must hold one row of numbers for each of the {len(split.store)} samples of {split.store.name}, "
            f"got shape {array.shape} of {array.dtype}."
        )
    rows = array[split.index.numpy()].astype(np.float64)
    return _numbers(pd.DataFrame(rows), path, split).float()


def _aligned(path: Path, split: Split) -> pd.DataFrame:
    """The rows of the file that belong to the split, in its order."""
    table = _read(path)
    key = next((name for name in KEYS if name in table.columns), None)
    if key is None:
        raise DataError(
            f"{path} must have a column `id` (or `position`) that identifies its rows; "
            f"it has: {', '.join(map(str, table.columns))}."
        )
    if key == "id":
        known, wanted = pd.Index(_ids(table["id"], path)), keys(split.ids)
    else:
        known, wanted = pd.Index(pd.to_numeric(table["position"], errors="coerce")), split.index.numpy()
    repeated = known[known.duplicated() & (known != "")]
    if len(repeated):
        raise DataError(f"{path}: {key} {repeated[0]} is in more than one row; keep one of them.")
    rows = known.get_indexer(wanted)
    absent = np.flatnonzero(rows < 0)
    if len(absent):
        raise DataError(
            f"{path} has no row for {len(absent)} of the {len(split)} samples of {split.name} (first: {key} "
            f"{wanted[absent[0]]}); it must cover all of them, so make it on the same data."
        )
    return table.iloc[rows].reset_index(drop=True)


def _ids(column: pd.Series, path: Path) -> np.ndarray:
    """Comparable text of the ids, as in `expunge.data.values`; "" for missing ones."""
    if path.suffix.lower() == ".csv":
        return ids_of_cells(column.tolist())
    values = pa.chunked_array([pa.Array.from_pandas(column)])
    return as_text(whole_numbers(from_arrow(values, f"{path}, column `id`")))


def _read(path: Path) -> pd.DataFrame:
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"scores and features are read from {' and '.join(SUFFIXES)} files, got {path}.")
    try:
        if path.suffix.lower() == ".parquet":
            return pd.read_parquet(path)
        return pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (OSError, ValueError) as error:  # parsers and decoders raise kinds of ValueError
        raise DataError(f"cannot read {path} ({_reason(error)}); give a {' or '.join(SUFFIXES)} file.") from None


def _numbers(table: pd.DataFrame, path: Path, split: Split) -> Tensor:
    """Float64 (rows, columns), all finite."""
    columns = [table[name] for name in table.columns]
    # Text is read by Python, to the last digit: some versions of pandas round.
    read = [c if pd.api.types.is_numeric_dtype(c) else c.map(_number) for c in columns]
    values = np.column_stack([c.to_numpy(dtype=np.float64, na_value=np.nan) for c in read])
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        row, column = bad[0]
        samples = len(np.unique(bad[:, 0]))
        raise DataError(
            f"{path} has no finite number in column `{table.columns[column]}` for {samples} of the {len(split)} "
            f"samples of {split.name} (first: id {split.ids[row]}); a score needs one for each."
        )
    return torch.from_numpy(np.ascontiguousarray(values))


def _number(text: object) -> float:
    try:
        return float(str(text))
    except ValueError:
        return float("nan")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
