"""Suspected wrong labels: who, what the data say, what they should say, how sure somebody is.

A list is what a label checker wrote, or a person: CSV, Parquet, JSON or a DataFrame. Columns, in small letters:

    id (or sample_id)          the sample's id in the data; `position`, `index` or an index without a name count from 0.
                               Without any of them there must be one row per sample, in the order of the data
    is_label_issue             only rows where it is true are suspects; without the column, all rows are
    given_label                must be the label that the data have, so that a list about other data is found out
    predicted_label            the label it should have (also: suggested_label, suggested, label); empty: not known
    label_quality              in [0, 1], low where the label is doubtful (also: label_score, score)

These are the columns of cleanlab's `CleanLearning.get_label_issues()` and of Datalab's `get_issues("label")`. Labels
are class numbers or class names.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from expunge.core.errors import DataError, UsageError
from expunge.data.split import Split
from expunge.data.values import keys
from expunge.repair.suspects_file import POSITION, as_text, read_table, with_plain_names

KEYS = ("id", "sample_id", POSITION, "index")
SUGGESTED = ("predicted_label", "suggested_label", "suggested", "label")
SCORES = ("label_quality", "label_score", "score")
_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no", "")


@dataclass(frozen=True, eq=False)
class Suspects:
    """Suspected samples in ascending order of position, all of them samples that the model was trained on.

    positions: long (n,) in the store. given: long (n,), the label in the data. suggested: long (n,), -1 where no other
    label is known. score: float64 (n,), NaN where there is none. notes: what of the list was left out, and why.
    """

    ids: np.ndarray
    positions: Tensor
    given: Tensor
    suggested: Tensor
    score: np.ndarray
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def relabelled(self) -> Tensor:
        """Bool (n,): another label is known."""
        return self.suggested >= 0

    def pairs(self) -> list[tuple[int, int, int]]:
        """(given, suggested, number of suspects), the most frequent first."""
        label_pairs = torch.stack([self.given, self.suggested], 1)[self.relabelled]
        pairs, counts = label_pairs.unique(dim=0, return_counts=True)
        rows = [(int(a), int(b), int(n)) for (a, b), n in zip(pairs.tolist(), counts.tolist(), strict=True)]
        return sorted(rows, key=lambda row: (-row[2], row[0], row[1]))

    def content_hash(self) -> str:
        """Hex sha256 over who is suspected of what."""
        return hashlib.sha256(torch.stack([self.positions, self.given, self.suggested]).numpy().tobytes()).hexdigest()


def read_suspects(source: Any, train: Split, *, below: float | None = None, top: int | None = None) -> Suspects:
    """Suspects among the samples of `train`, from a file, a DataFrame, or ids and positions; see the module.

    below: keep rows whose score is below it. top: keep so many with the lowest scores. Both narrow what the list flags.
    Samples of the same data that `train` leaves out (held-out ones) and rows that suggest the label that the data have
    already are left out, with a note. Raises `DataError` for unknown or repeated samples, labels that do not exist,
    a given label that contradicts the data, and a list of which nothing is left.
    """
    if isinstance(source, Suspects):
        if below is not None or top is not None:
            raise UsageError("these suspects are chosen already; leave out `below` and `top`.")
        return source
    if not train.has_labels:
        raise DataError("labels can only be repaired in data that have labels.")
    if isinstance(source, (str, Path)):
        name, table = str(source), read_table(Path(source).expanduser(), len(train.store))
    else:
        name = "the list of suspects"
        table = _frame(source, name)
    positions = _positions(table, train, name)
    return _select(table, positions, train, name, below, top)


def _frame(source: Any, name: str) -> pd.DataFrame:
    if isinstance(source, (list, tuple, np.ndarray, Tensor, pd.Series)):
        values = np.asarray(source)
        if values.ndim != 1 or values.dtype.kind not in "iuUOS":
            raise UsageError(f"{name} must be one-dimensional, of ids or positions, got {values.dtype} {values.shape}.")
        source = pd.DataFrame({POSITION if values.dtype.kind in "iu" else "id": values})
    elif not isinstance(source, pd.DataFrame):
        raise UsageError(f"suspects are a file, a DataFrame, or a list of ids, got {type(source).__name__}.")
    elif not isinstance(source.index, pd.RangeIndex):
        source = source.reset_index(names=source.index.name or POSITION)
    if not len(source):
        raise DataError(f"{name} is empty; give at least one.")
    return as_text(with_plain_names(source, name))


def _positions(table: pd.DataFrame, train: Split, name: str) -> np.ndarray:
    """Positions in the store, in the table's order."""
    count = len(train.store)
    key = next((column for column in KEYS if column in table.columns), None)
    if key is None:
        if len(table) != count:
            raise DataError(
                f"{name} has no column `id` or `position`, and {len(table)} rows for the {count} samples of the data; "
                f"say which samples are meant. It has: {', '.join(map(str, table.columns))}."
            )
        return np.arange(count)
    texts = table[key].str.strip().to_numpy(dtype=str)
    index = pd.Index(keys(train.store.ids))
    if key in (POSITION, "index"):
        whole = np.array([text.isascii() and text.isdigit() and len(text) < 19 for text in texts], dtype=bool)
        numbers = np.where(whole, texts, "-1").astype(np.int64)
        positions = np.where(numbers < count, numbers, -1)
    else:  # a number is the id that is written so, never a position
        positions = index.get_indexer(keys(texts))
    missing = np.flatnonzero(positions < 0)
    if len(missing):
        raise DataError(
            f"{name}: {len(missing)} of {len(texts)} samples are not in the data (first: {key} "
            f"`{texts[missing[0]][:60]}`); ids there look like `{index[0]}`, positions count from 0 to {count - 1}."
        )
    repeated = pd.Index(positions).duplicated()
    if repeated.any():
        raise DataError(f"{name}: {key} `{texts[repeated][0][:60]}` stands in more than one row; keep one of them.")
    return positions


def _select(
    table: pd.DataFrame, positions: np.ndarray, train: Split, name: str, below: float | None, top: int | None
) -> Suspects:
    notes = []
    labels = train.labels if train.labels is not None else train.store.labels
    given = labels[torch.from_numpy(positions)].numpy()
    _check_given(table, given, train, name)
    flagged = _flags(table, name)
    score = _scores(table, name)
    keep = flagged.copy()
    in_train = np.isin(positions, train.index.numpy())
    if (keep & ~in_train).any():
        unseen = int((keep & ~in_train).sum())
        notes.append(f"{unseen} suspects are samples that the model was not trained on; left out.")
        keep &= in_train
    column = next((column for column in SUGGESTED if column in table.columns), None)
    suggested = (
        np.full(len(table), -1) if column is None else _labels(table[column], keep, train, f"{name}: `{column}`")
    )
    same = keep & (suggested == given)
    if same.any():
        notes.append(f"{int(same.sum())} rows suggest the label that the data have already; nothing is wrong there.")
        keep &= ~same
    keep = _narrowed(keep, score, name, below, top)
    if not keep.any():
        what = f" ({' '.join(notes)})" if notes else ""
        raise DataError(f"{name}: no suspect is left of {len(table)} rows{what}; check is_label_issue and `below`.")
    if keep.sum() == len(train):
        raise DataError(f"{name}: all {len(train)} samples are suspects; a repair needs some that are trusted.")
    rows = np.flatnonzero(keep)[np.argsort(positions[keep], kind="stable")]
    chosen = torch.from_numpy(positions[rows].astype(np.int64))
    return Suspects(
        ids=train.store.ids[chosen.numpy()].astype(str),
        positions=chosen,
        given=torch.from_numpy(given[rows].astype(np.int64)),
        suggested=torch.from_numpy(suggested[rows].astype(np.int64)),
        score=score[rows],
        notes=tuple(notes),
    )


def _narrowed(keep: np.ndarray, score: np.ndarray, name: str, below: float | None, top: int | None) -> np.ndarray:
    if below is None and top is None:
        return keep
    if top is not None and top < 1:
        raise UsageError(f"`top` must be at least 1, got {top}.")
    if np.isnan(score[keep]).any() or not keep.any():
        raise DataError(f"{name} has no score for every suspect, so `below` and `top` cannot choose by it.")
    if below is not None:
        keep = keep & (score < below)
    if top is not None:
        lowest = np.flatnonzero(keep)[np.argsort(score[keep], kind="stable")[:top]]
        keep = np.isin(np.arange(len(keep)), lowest)
    return keep


def _check_given(table: pd.DataFrame, given: np.ndarray, train: Split, name: str) -> None:
    if "given_label" not in table.columns:
        return
    stated = _labels(table["given_label"], np.ones(len(table), dtype=bool), train, f"{name}: `given_label`")
    wrong = np.flatnonzero((stated >= 0) & (stated != given))
    if len(wrong):
        row = wrong[0]
        raise DataError(
            f"{name}, row {row + 1}: given_label is {table['given_label'][row]}, but the data say {given[row]}; "
            f"{len(wrong)} of {len(table)} rows contradict the data, so the list is about other data or another order."
        )


def _flags(table: pd.DataFrame, name: str) -> np.ndarray:
    if "is_label_issue" not in table.columns:
        return np.ones(len(table), dtype=bool)
    texts = table["is_label_issue"].str.strip().str.lower()
    odd = texts[~texts.isin([*_TRUE, *_FALSE])]
    if len(odd):
        raise DataError(
            f"{name}, row {odd.index[0] + 1}: is_label_issue is `{odd.iloc[0][:40]}`; allowed: true, false."
        )
    return texts.isin(_TRUE).to_numpy()


def _scores(table: pd.DataFrame, name: str) -> np.ndarray:
    column = next((column for column in SCORES if column in table.columns), None)
    if column is None:
        return np.full(len(table), np.nan)
    texts = table[column].str.strip()
    values = pd.to_numeric(texts.where(texts != "", "nan"), errors="coerce").to_numpy(dtype=np.float64)
    bad = np.flatnonzero((np.isnan(values) & ~texts.isin(["", "nan", "NaN"])) | np.isinf(values))
    if len(bad):
        raise DataError(f"{name}, row {bad[0] + 1}: `{column}` is `{texts[bad[0]][:40]}`, which is no finite number.")
    return values


def _labels(column: pd.Series, rows: np.ndarray, train: Split, what: str) -> np.ndarray:
    """Class numbers, -1 where the cell is empty. Only the rows that are `asked` for must be right."""
    classes = train.store.classes
    texts = column.str.strip()
    by_text = {text: _number(text, classes) for text in texts.unique()}
    numbers = texts.map(by_text).to_numpy(dtype=np.int64)
    bad = np.flatnonzero(rows & (numbers < -1))
    if len(bad):
        examples = ", ".join(f"{i}={n}" if n != str(i) else n for i, n in enumerate(classes[:12]))
        examples += ", ..." if len(classes) > 12 else ""
        raise DataError(f"{what} is `{texts[bad[0]][:40]}` in row {bad[0] + 1}; allowed: {examples}.")
    return np.maximum(numbers, -1)


def _number(text: str, classes: tuple[str, ...]) -> int:
    """-1: none given; -2: no such class. Digits mean numbers, as everywhere here; names mean names."""
    if text in classes and not text.isdigit():
        return classes.index(text)
    if text.lower() in ("", "nan", "none", "<na>"):
        return -1
    whole = text.removesuffix(".0")  # an integer column with gaps is written as floats
    number = int(whole) if whole.isascii() and whole.isdigit() and len(whole) < 10 else -2
    return number if number < len(classes) else -2
