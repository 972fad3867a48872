"""Who is to be forgotten, as callers say it: positions, a mask, ids, a file of ids, a class, a predicate."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from expunge.core.errors import DataError, UsageError
from expunge.data.predicate import evaluate
from expunge.data.split import Split

SUFFIXES = (".csv", ".json", ".txt")


def positions_from(selection: Any, split: Split, *, predicate: bool = False) -> Tensor:
    """Positions in the store (long, as they were named) of the samples of `split` that `selection` means.

    selection: a sequence of positions in the store; a boolean mask over the split; a sequence of ids; the path of a
    .csv (column `id`, else the first), .json (a list) or .txt file (one per line) of ids; one class number or class
    name; text of comma-separated ids; with `predicate=True` an expression such as `age < 18 and city in {Rome, Oslo}`;
    a callable that takes a dict of metadata arrays (len(split),) and returns a mask. Numbers given as text mean ids
    where the data have such ids, else positions.

    Raises `DataError` for unknown or repeated ids, positions outside the split, masks of the wrong length and
    unreadable files; `UsageError` for a selection that cannot be understood.
    """
    if callable(selection):
        return split.index[_mask(selection(columns_of(split)), split, "the predicate")]
    if predicate:
        if not isinstance(selection, str):
            raise UsageError(f"a predicate is an expression or a callable, got {type(selection).__name__}.")
        return split.index[_mask(evaluate(selection, columns_of(split)), split, f"`{selection}`")]
    if isinstance(selection, (str, Path)):
        return _from_text(selection, split)
    if isinstance(selection, (int, np.integer)) and not isinstance(selection, bool):
        return _class_members(int(selection), split)
    return _from_sequence(selection, split)


def columns_of(split: Split) -> dict[str, np.ndarray]:
    """Metadata of the split's samples, with `id`, and `label` and `class_name` where labels are visible."""
    rows = split.index.numpy()
    columns = {"id": split.ids}
    if split.has_labels:
        columns["label"] = split.y.numpy()
        columns["class_name"] = np.array(split.store.classes, dtype=str)[columns["label"]]
    return columns | {name: values[rows] for name, values in split.store.columns.items()}


def read_ids(path: Path) -> list[str]:
    """Ids from a CSV, JSON or text file, in its order. Raises `DataError` naming the file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); save the ids as UTF-8.") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}.") from None
    if path.suffix.lower() == ".json":
        ids = _json_ids(text, path)
    elif path.suffix.lower() == ".csv":
        rows = [row for row in csv.reader(text.splitlines()) if any(cell.strip() for cell in row)]
        header = [cell.strip().lower() for cell in rows[0]] if rows else []
        column = header.index("id") if "id" in header else 0
        short = next((n for n, row in enumerate(rows, 1) if len(row) <= column), None)
        if short is not None:
            raise DataError(f"{path}, line {short}: there is no value in the column `id`.")
        ids = [row[column].strip() for row in rows[1 if "id" in header else 0 :]]
    else:
        ids = [line.strip() for line in text.splitlines() if line.strip()]
    if not ids:
        raise DataError(f"{path} holds no ids.")
    return ids


def _json_ids(text: str, path: Path) -> list[str]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not valid JSON ({error.msg}).") from None
    if isinstance(content, dict) and isinstance(content.get("ids"), list):
        content = content["ids"]
    if not isinstance(content, list) or any(isinstance(i, bool) or not isinstance(i, (str, int)) for i in content):
        raise DataError(f"{path} must hold a list of ids (text or whole numbers), or an object with such a list `ids`.")
    return [str(item) for item in content]


def _from_text(selection: str | Path, split: Split) -> Tensor:
    text = str(selection)
    if isinstance(selection, Path) or text.lower().endswith(SUFFIXES):
        path = Path(text).expanduser()
        if path.is_file() or text not in set(split.ids.tolist()):
            return _from_ids(read_ids(path), split, str(path))
    if text in split.store.classes and not text.lstrip("-").isdigit():
        return _class_members(split.store.classes.index(text), split)
    if Path(text).is_file() and text not in set(split.ids.tolist()):
        raise UsageError(f"{text}: files of this type cannot be read as ids; allowed: {', '.join(SUFFIXES)}.")
    tokens = [token.strip() for token in text.split(",") if token.strip()]
    if not tokens:
        raise UsageError("the selection is empty; give ids, positions or the path of a file of ids.")
    return _from_ids(tokens, split, "the selection")


def _class_members(number: int, split: Split) -> Tensor:
    if not 0 <= number < split.num_classes:
        raise UsageError(f"class {number} does not exist in {split.name}; allowed: 0..{split.num_classes - 1}.")
    return split.index[split.y == number]


def _from_sequence(selection: Any, split: Split) -> Tensor:
    if isinstance(selection, (set, frozenset)):
        selection = sorted(selection)
    if not isinstance(selection, (Sequence, np.ndarray, Tensor, range)) and not hasattr(selection, "__array__"):
        raise UsageError(f"cannot select samples by a {type(selection).__name__}; give positions, a mask or ids.")
    values = selection.detach().cpu().numpy() if isinstance(selection, Tensor) else np.asarray(selection)
    if values.ndim != 1:
        raise UsageError(f"positions, masks and ids are one-dimensional, got shape {values.shape}.")
    if values.size == 0:
        return torch.empty(0, dtype=torch.long)
    if values.dtype == bool:
        return split.index[_mask(values, split, "the mask")]
    if values.dtype.kind in "iu":
        return _check_positions(values.astype(np.int64), split)
    if values.dtype.kind in "UO" and all(isinstance(value, str) for value in values.tolist()):
        return _from_ids(values.tolist(), split, "the selection")
    raise UsageError(f"cannot select samples by values such as {values[0]!r}; give positions, a mask or ids.")


def _from_ids(names: list[str], split: Split, source: str) -> Tensor:
    known = {str(name): int(position) for name, position in zip(split.ids, split.index, strict=True)}
    missing = [name for name in names if name not in known]
    if len(missing) == len(names) and all(name.isascii() and name.lstrip("-").isdigit() for name in names):
        return _check_positions(np.array(names, dtype=np.int64), split)
    if missing:
        raise DataError(
            f"{source}: {len(missing)} of {len(names)} ids are not in {split.name}: {', '.join(missing[:3])}"
            f"{', ...' if len(missing) > 3 else ''}; ids there look like `{next(iter(known), '')}`."
        )
    _refuse_repeats(np.array(names), "id", source)
    return torch.tensor([known[name] for name in names], dtype=torch.long)


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
        shown = ", ".join(map(str, repeated[:3]))
        raise DataError(f"{source}: {_counted(len(repeated), kind)} given more than once: {shown}; name each once.")


def _counted(number: int, noun: str) -> str:
    """`1 position is`, `2 positions are`."""
    return f"{number} {noun} is" if number == 1 else f"{number} {noun}s are"


def _mask(values: Any, split: Split, what: str) -> Tensor:
    mask = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if mask.dtype != bool or mask.shape != (len(split),):
        raise DataError(
            f"{what} must give one true or false for each of the {len(split)} samples of {split.name}, got shape "
            f"{mask.shape} of {mask.dtype}; combine conditions on arrays with & and |."
        )
    return torch.from_numpy(mask.copy())
