"""Selection of samples by id, by position, or by a condition on metadata.

Ids are compared by value, as described in `expunge.data.values`. A number is a position only if the caller says so,
with `index:3,17` or the scenario `index`; as an id, `3` is the sample whose id is 3.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from expunge.core.errors import DataError, UsageError, shorten
from expunge.data.predicate import evaluate
from expunge.data.split import Split
from expunge.data.values import as_column, as_text, from_cells, keys, kind_of, whole_numbers

SUFFIXES = (".csv", ".json", ".txt")
INDEX = "index:"
_POSITION = re.compile(r"\d{1,18}")


def rows_by_id(selection: Any, split: Split) -> Tensor:
    """Positions in the store of the samples of `split` with given ids.

    Args:
        selection: one id or a sequence of ids (text or whole numbers); text of comma-separated ids; the path of a .csv
            (column `id`, or the only column), .json (a list) or .txt file (one per line) of ids. Also a boolean mask
            over the split, and text that begins with `index:` (`rows_by_index`).
        split: the data.

    Returns:
        Long (k,), in the order of the ids.

    Raises:
        DataError: for unknown or repeated ids and unreadable files.
        UsageError: for other kinds of selections.
    """
    if isinstance(selection, (str, Path)):
        return _from_text(selection, split)
    if isinstance(selection, (int, np.integer)) and not isinstance(selection, bool):
        return _matching([str(selection)], split, "the selection")
    values = _sequence(selection, "ids")
    if values.size == 0:
        return torch.empty(0, dtype=torch.long)
    if values.dtype == bool:
        return split.index[_mask(values, split, "the mask")]
    if values.dtype.kind in "iu":
        return _matching(values.astype(str).tolist(), split, "the selection")
    if values.dtype.kind in "UO" and all(isinstance(value, (str, int)) for value in values.tolist()):
        return _matching([str(value) for value in values.tolist()], split, "the selection")
    raise UsageError(
        f"cannot select samples by values such as {shorten(repr(values[0]))}; give ids: text or whole numbers."
    )


def rows_by_index(selection: Any, split: Split) -> Tensor:
    """Checked positions in the store: each is in `split`, none is repeated.

    Args:
        selection: one position or a sequence of them, counted from 0 in the data set; a boolean mask over the split;
            text of comma-separated positions; the path of a file of them, as for ids.
        split: the data.

    Returns:
        Long (k,), in the given order.

    Raises:
        DataError: for positions that are repeated or outside the split.
        UsageError: for values that are not positions.
    """
    if isinstance(selection, (str, Path)):
        text = str(selection).strip()
        is_file = isinstance(selection, Path) or text.lower().endswith(SUFFIXES)
        names = read_ids(Path(text).expanduser()) if is_file else _split(text, "positions")
        wrong = next((name for name in names if not _POSITION.fullmatch(name)), None)
        if wrong is not None:
            raise UsageError(
                f"`{shorten(wrong)}` is not a position; positions are whole numbers from 0, as in index:3,17."
            )
        return _check_positions(np.array(names, dtype=np.int64), split)
    if isinstance(selection, (int, np.integer)) and not isinstance(selection, bool):
        return _check_positions(np.array([selection], dtype=np.int64), split)
    values = _sequence(selection, "positions")
    if values.size == 0:
        return torch.empty(0, dtype=torch.long)
    if values.dtype == bool:
        return split.index[_mask(values, split, "the mask")]
    if values.dtype.kind not in "iu":
        raise UsageError(f"`{shorten(str(values[0]))}` is not a position; positions are whole numbers from 0.")
    return _check_positions(values.astype(np.int64), split)


def rows_where(condition: Any, split: Split) -> Tensor:
    """Positions in the store of the samples whose metadata satisfy a condition.

    Args:
        condition: an expression such as `age < 18 and city in {Rome, Oslo}` (`expunge.data.predicate`), or a callable
            that takes a dict of metadata arrays (len(split),), with missing cells masked, and returns a mask.
        split: the data.

    Returns:
        Long (k,), in the order of the split.

    Raises:
        DataError: for unknown columns and values of the wrong type.
        UsageError: for anything that is not a condition.
    """
    if callable(condition):
        return split.index[_mask(condition(columns_of(split)), split, "the condition")]
    if not isinstance(condition, str):
        raise UsageError(f"a condition is an expression or a callable, got {type(condition).__name__}.")
    return split.index[_mask(evaluate(condition, columns_of(split)), split, f"`{shorten(condition)}`")]


def columns_of(split: Split) -> dict[str, np.ndarray]:
    """Metadata of the split's samples as typed columns (len(split),), with `id`, and `label` and `class_name` if known.

    `label` is the index of the class; if the names of the classes are numbers (1 to 10), it is that number.
    """
    rows = split.index.numpy()
    columns = {"id": split.ids}
    if split.has_labels:
        names = np.array(split.store.classes, dtype=str)
        numbered = from_cells(list(split.store.classes)) if len(names) else names
        number = split.y.numpy()
        columns["label"] = numbered[number] if kind_of(numbered) == "integer" else number
        columns["class_name"] = names[number]
    return columns | {name: as_column(values)[rows] for name, values in split.store.columns.items()}


def read_ids(path: Path) -> list[str]:
    """Ids of a CSV, JSON or text file, in its order; raises `DataError` if it cannot be read or has none."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); save the ids as UTF-8.") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}.") from None
    if path.suffix.lower() == ".json":
        ids = _json_ids(text, path)
    elif path.suffix.lower() == ".csv":
        ids = _csv_ids(text, path)
    else:
        ids = [line.strip() for line in text.splitlines() if line.strip()]
    if not ids:
        raise DataError(f"{path} holds no ids.")
    return ids


def _csv_ids(text: str, path: Path) -> list[str]:
    try:
        rows = [row for row in csv.reader(text.splitlines(), strict=True) if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise DataError(f"cannot read {path}: not valid CSV ({shorten(str(error))}).") from None
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    if "id" not in header and any(len(row) > 1 for row in rows):
        raise DataError(f"{path} has several columns and none is called `id`; name the column of the ids so.")
    column = header.index("id") if "id" in header else 0
    short = next((n for n, row in enumerate(rows, 1) if len(row) <= column or not row[column].strip()), None)
    if short is not None:
        raise DataError(f"{path}, line {short}: there is no value in the column `id`.")
    return [row[column].strip() for row in rows[1 if "id" in header else 0 :]]


def _json_ids(text: str, path: Path) -> list[str]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not valid JSON ({error.msg}).") from None
    except (RecursionError, ValueError):  # nested too deeply, or a number of more digits than Python reads
        raise DataError(f"{path} cannot be read as JSON; it must hold a list of ids.") from None
    if isinstance(content, dict) and isinstance(content.get("ids"), list):
        content = content["ids"]
    if not isinstance(content, list) or any(isinstance(i, bool) or not isinstance(i, (str, int)) for i in content):
        raise DataError(f"{path} must hold a list of ids (text or whole numbers), or an object with such a list `ids`.")
    return [str(item) for item in content]


def _from_text(selection: str | Path, split: Split) -> Tensor:
    text = str(selection)
    if text.startswith(INDEX):
        return rows_by_index(text.removeprefix(INDEX), split)
    names_file = isinstance(selection, Path) or text.lower().endswith(SUFFIXES)
    if names_file or _is_file(text):
        path = Path(text).expanduser()
        if not names_file and not _is_id(text, split):
            raise UsageError(
                f"{shorten(text)}: files of this type cannot be read as ids; allowed: {', '.join(SUFFIXES)}."
            )
        if isinstance(selection, Path) or path.is_file() or not _is_id(text, split):
            return _matching(read_ids(path), split, str(path))
    return _matching(_split(text, "ids"), split, "the selection")


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long, or no name a file can have
        return False


def _is_id(text: str, split: Split) -> bool:
    return bool(np.any(split.ids == text))


def _split(text: str, what: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UsageError(f"the selection is empty; give {what}, or the path of a file of them.")
    return names


def _sequence(selection: Any, what: str) -> np.ndarray:
    """One-dimensional values."""
    if isinstance(selection, (set, frozenset)):
        selection = sorted(selection, key=str)
    if not isinstance(selection, (Sequence, np.ndarray, Tensor, range)) and not hasattr(selection, "__array__"):
        raise UsageError(f"cannot select samples by a {type(selection).__name__}; give {what} or a mask.")
    try:
        values = selection.detach().cpu().numpy() if isinstance(selection, Tensor) else np.asarray(selection)
    except ValueError:
        raise UsageError(f"cannot select samples by nested lists; give {what} or a mask.") from None
    if values.ndim != 1:
        raise UsageError(f"positions, masks and ids are one-dimensional, got shape {values.shape}.")
    return values


def _matching(names: list[str], split: Split, source: str) -> Tensor:
    """Positions of the samples with these ids; whole numbers written as `5.0` match the id 5."""
    known = pd.Index(keys(split.ids))
    written = keys(np.array(names, dtype=str))
    place = np.arange(len(known))
    if known.has_duplicates:
        repeated = known.duplicated(keep=False)
        asked = known[repeated & known.isin(written)]
        if len(asked):
            raise DataError(
                f"{source}: several ids differ from `{asked[0]}` in space or Unicode form only; rename them."
            )
        known, place = known[~repeated], place[~repeated]
    rows = known.get_indexer(pd.Index(written))
    absent = rows < 0
    if absent.any():
        numbers = as_text(whole_numbers(from_cells(written[absent].tolist())))
        rows[absent] = np.where(_as_floats(written[absent]), known.get_indexer(pd.Index(numbers)), -1)
        absent = rows < 0
    if absent.any():
        raise DataError(_unknown([names[at] for at in np.flatnonzero(absent)], len(names), split, source))
    _refuse_repeats(np.asarray(known)[rows], "id", source)
    return split.index[torch.from_numpy(place[rows])]


def _as_floats(texts: np.ndarray) -> np.ndarray:
    return np.array([bool(re.fullmatch(r"-?\d+\.0", text)) for text in texts.tolist()], dtype=bool)


def _unknown(absent: list[str], count: int, split: Split, source: str) -> str:
    absent = [shorten(name, 40) for name in absent[:4]] + absent[4:]
    sentence = (
        f"{source}: {len(absent)} of {count} ids are not in {split.name}: {', '.join(absent[:3])}"
        f"{', ...' if len(absent) > 3 else ''}; ids there look like `{split.ids[0] if len(split) else ''}`"
    )
    plain = absent[0].lstrip("0") or "0"
    if plain != absent[0] and _is_id(plain, split):
        return f"{sentence}, and `{absent[0]}` is not `{plain}`."
    if all(_POSITION.fullmatch(name) for name in absent):
        return f"{sentence}. If positions are meant, take the scenario `index`: index:{','.join(absent[:3])}."
    return f"{sentence}; `expunge inspect` shows them."


def _check_positions(positions: np.ndarray, split: Split) -> Tensor:
    inside = np.isin(positions, split.index.numpy())
    if not inside.all():
        outside = positions[~inside]
        raise DataError(
            f"{_counted(len(outside), 'position')} not in {split.name}: {', '.join(map(str, outside[:3]))}"
            f"{', ...' if len(outside) > 3 else ''}; positions count from 0 in its data set of {len(split.store)}."
        )
    _refuse_repeats(positions, "position", "the selection")
    return torch.from_numpy(positions)


def _refuse_repeats(values: np.ndarray, kind: str, source: str) -> None:
    unique, counts = np.unique(values, return_counts=True)
    repeated = unique[counts > 1]
    if len(repeated):
        shown = ", ".join(shorten(str(value), 40) for value in repeated[:3])
        raise DataError(f"{source}: {_counted(len(repeated), kind)} given more than once: {shown}; name each once.")


def _counted(number: int, noun: str) -> str:
    """`1 position is`, `2 positions are`."""
    return f"{number} {noun} is" if number == 1 else f"{number} {noun}s are"


def _mask(values: Any, split: Split, what: str) -> Tensor:
    if isinstance(values, np.ma.MaskedArray) and values.dtype == bool:
        values = values.filled(False)  # a missing cell fulfils nothing
    mask = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if mask.dtype != bool or mask.shape != (len(split),):
        raise DataError(
            f"{what} must give one true or false for each of the {len(split)} samples of {split.name}, got shape "
            f"{mask.shape} of {mask.dtype}; combine conditions on arrays with & and |."
        )
    return torch.from_numpy(mask.copy())
