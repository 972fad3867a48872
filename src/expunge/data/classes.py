"""Labels to classes: their names, their order, and the class that a caller names.

Labels of a table are typed like every column (`expunge.data.values`): whole numbers are the numbers of the classes and
have no other names; texts, names of class folders and stated names (`ClassLabel`) are names. The order is that of the
numbers, of the stated names, or alphabetical, as torchvision orders class folders; the option `classes` sets another.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from expunge.core.errors import DataError, UsageError, nearest, shorten
from expunge.data.values import as_text, from_cells, is_missing, key, keys, kind_of, whole_numbers

if TYPE_CHECKING:
    from expunge.data.raw import Raw
    from expunge.data.split import Split

INDEX = "index:"
MOST = 100_000  # classes; a label beyond it is some other number
_RANGE = re.compile(r"\s*(\d{1,9})\.\.(\d{1,9})\s*")
_NO_NAMES = {"nan", "<na>", ""}  # what programs write for a label that is missing


def label_column(labels: np.ndarray) -> np.ndarray:
    """Labels (n,) or one-hot (n, classes) as a column; whole floats and texts of numbers become integers."""
    if labels.ndim == 2:
        labels = from_one_hot(labels)
    if labels.dtype.kind in "USO":
        texts = np.ma.getdata(labels).astype(str)
        missing = is_missing(labels) | np.isin(np.char.lower(np.char.strip(texts)), list(_NO_NAMES))
        labels = from_cells(
            [None if absent else text for text, absent in zip(texts.tolist(), missing.tolist(), strict=True)]
        )
        labels = labels if kind_of(labels) in ("integer", "text") else np.ma.MaskedArray(texts, mask=missing)
    return whole_numbers(labels)


def from_one_hot(labels: np.ndarray) -> np.ndarray:
    """Class numbers (n,) of one-hot rows (n, classes); raises `DataError` for other rows."""
    if labels.shape[1] == 1:
        return labels[:, 0]
    ones = (labels == 1).sum(axis=1)
    wrong = np.flatnonzero((ones != 1) | ((labels != 0).sum(axis=1) != 1))
    if len(wrong):
        raise DataError(
            f"labels of shape {labels.shape} are no one-hot rows (row {int(wrong[0])} holds "
            f"{np.array2string(labels[wrong[0]], threshold=8)}); each sample needs exactly one class."
        )
    return np.asarray(labels.argmax(axis=1))


def is_unlabelled(raw: Raw) -> bool:
    """Whether no sample of a part has a label: all are missing, or -1 as in unlabelled parts of benchmarks."""
    labels = label_column(raw.labels)
    if not len(labels):
        return False
    missing = is_missing(labels)
    return bool(missing.all() or (labels.dtype.kind in "iu" and bool((missing | (np.ma.getdata(labels) == -1)).all())))


def chosen_order(given: str | Sequence[object] | None) -> tuple[str, ...] | None:
    """Class names of the option `classes`: separated by commas or in a list, or a range of numbers such as 1..10.

    >>> chosen_order("cat, dog"), chosen_order("0..3")
    (('cat', 'dog'), ('0', '1', '2', '3'))
    """
    if given is None:
        return None
    if isinstance(given, str) and (ends := _RANGE.fullmatch(given)):
        first, last = int(ends[1]), int(ends[2])
        if first >= last or last - first >= MOST:
            raise UsageError(f"classes: `{shorten(given)}` is not a range of classes; write for example classes=1..10.")
        names = [str(number) for number in range(first, last + 1)]
    else:
        names = [key(str(name)) for name in (given.split(",") if isinstance(given, str) else given)]
    repeated = next((name for name in names if names.count(name) > 1), None) if len(names) < 1000 else None
    if not names or "" in names or repeated is not None or len(set(names)) < len(names):
        what = f"`{repeated}` is named twice" if repeated else "every class needs a name of its own"
        raise UsageError(f"classes: {what}; write for example classes=cat,dog or classes=1..10.")
    return tuple(names)


def class_names(parts: dict[str, Raw], name: str, order: tuple[str, ...] | None = None) -> tuple[str, ...]:
    """The classes of all parts together, so that train and test agree on their numbers.

    Args:
        parts: the parts of a source.
        name: of the source, for messages.
        order: the classes as the caller lists them, which are returned unchanged.

    Raises:
        DataError: if the parts cannot have the same classes.
    """
    if order is not None:
        return order
    stated = next((raw.names for raw in parts.values() if raw.names is not None), None)
    if stated is not None:
        return stated
    labels = {part: label_column(raw.labels) for part, raw in parts.items()}
    kinds = {kind_of(column) for column in labels.values() if len(column)}
    for part, column in labels.items():
        if kind_of(column) == "number":
            row = int(
                np.flatnonzero(~np.isnan(column) & (column != np.rint(column)) | np.isinf(column) | (column > 2**53))[0]
            )
            raise DataError(
                f"{parts[part].where(row)}: label {column[row]} is no class; classes are whole numbers or names."
            )
    if kinds & {"text"}:
        return _named(labels, name)
    if kinds == {"boolean"}:
        return ("False", "True")
    return _numbered(labels, name)


def _named(labels: dict[str, np.ndarray], name: str) -> tuple[str, ...]:
    names = {part: _present(column) for part, column in labels.items()}
    first = names.get("train", next(iter(names.values())))
    for part, others in names.items():
        new = sorted(others - first)
        if new:
            raise DataError(
                f"{name}: the {part} part has {len(new)} classes that the training part has not "
                f"({', '.join(new[:3])}); training knows {', '.join(sorted(first)[:5])}. Name all of them with "
                "classes=..., or mend the data."
            )
    return tuple(sorted(first))


def _present(column: np.ndarray) -> set[str]:
    return set(np.unique(as_text(column)).tolist()) - {""}


def _numbered(labels: dict[str, np.ndarray], name: str) -> tuple[str, ...]:
    values = [np.ma.getdata(column)[~is_missing(column)] for column in labels.values()]
    highest = max((int(column.max()) for column in values if len(column)), default=-1)
    lowest = min((int(column.min()) for column in values if len(column)), default=0)
    if highest >= MOST:
        raise DataError(f"{name}: label {highest} would mean {highest + 1:,} classes; name the right label column.")
    if lowest > 0:
        raise DataError(
            f"{name}: the labels go from {lowest} to {highest} and no sample has label 0; say which classes there are: "
            f"classes={lowest}..{highest} if {lowest} is the first one, classes=0..{highest} if it is not."
        )
    return tuple(str(number) for number in range(highest + 1))


def class_numbers(raw: Raw, classes: tuple[str, ...]) -> np.ndarray:
    """Labels as int64 (n,) in [0, len(classes)); raises `DataError` with file and row for any other label."""
    labels = label_column(raw.labels)
    missing = is_missing(labels)
    if raw.names is not None and raw.names != classes and kind_of(labels) == "integer":
        labels = _stated(raw, labels, missing)
    if kind_of(labels) == "integer" and (raw.names == classes or unnamed(classes)):
        numbers = np.ma.getdata(labels).astype(np.int64)
    elif kind_of(labels) == "number":
        numbers = np.full(len(labels), -1)
    else:
        numbers = _places(as_text(labels), classes)
    bad = np.flatnonzero(missing | (numbers < 0) | (numbers >= len(classes)))
    if len(bad):
        row = int(bad[0])
        if missing[row]:
            raise DataError(f"{raw.where(row)}: there is no label; unlabelled samples cannot be used.")
        shown = f"{np.ma.getdata(labels)[row]}"
        unlabelled = "; unlabelled samples cannot be used" if shown == "-1" else ""
        hint = (
            f" ({', '.join(classes[:6])}{', ...' if len(classes) > 6 else ''})"
            if classes != _default(len(classes))
            else ""
        )
        raise DataError(f"{raw.where(row)}: label {shown} is none of the {len(classes)} classes{hint}{unlabelled}.")
    return np.asarray(numbers)


def _stated(raw: Raw, labels: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """The stated names that numbered labels stand for."""
    names = np.array([*(raw.names or ()), ""], dtype=str)
    numbers = np.ma.getdata(labels)
    inside = ~missing & (numbers >= 0) & (numbers < len(names) - 1)
    texts = np.where(inside, names[np.where(inside, numbers, -1).astype(np.int64)], np.ma.getdata(labels).astype(str))
    return np.ma.MaskedArray(texts, mask=missing)


def _places(texts: np.ndarray, classes: tuple[str, ...]) -> np.ndarray:
    """Index in `classes` of each text (n,), -1 for texts that are no class."""
    unique, which = np.unique(texts, return_inverse=True)
    number_of = {key(name): number for number, name in enumerate(classes)}
    return np.array([number_of.get(text, -1) for text in keys(unique).tolist()], dtype=np.int64)[which]


def unnamed(names: tuple[str, ...]) -> bool:
    """Whether the only names of the classes are their numbers."""
    return names == _default(len(names))


def _default(count: int) -> tuple[str, ...]:
    return tuple(str(number) for number in range(count))


def class_index(split: Split, target: int | str) -> int:
    """Index of the class that a caller names.

    Args:
        split: data with the classes.
        target: the name; `index:3` for the class of index 3; or a whole number (not text) for the index, unless classes
            have numbers as names. A number written as text is a name, so it means the index only if the classes have
            no other names.

    Raises:
        UsageError: with the allowed names, if there is no such class.
    """
    names = split.store.classes
    numbered = unnamed(names)
    text = key(str(target))
    if isinstance(target, str) and text.startswith(INDEX):
        return _at_place(text.removeprefix(INDEX), split, names)
    places = [number for number, name in enumerate(names) if key(name) == text]
    if len(places) > 1:
        raise UsageError(f"several classes of {split.name} are called `{text}`; write {INDEX}{places[0]}, for example.")
    if places and (isinstance(target, str) or numbered):
        return places[0]
    if not isinstance(target, str):
        numeric = [name for name in names if re.fullmatch(r"\d+", name.strip())]
        if numeric and not numbered:
            raise UsageError(
                f"class {target} is ambiguous in {split.name}, whose classes have numbers as names "
                f"({', '.join(names[:4])}{', ...' if len(names) > 4 else ''}); write the name as text, or "
                f"{INDEX}{target} for the place."
            )
        return _at_place(text, split, names)
    if re.fullmatch(r"\d+", text) and not numbered and int(text) < len(names):
        raise UsageError(
            f"no class of {split.name} is called `{shorten(text)}`; its classes have names: class {text} is "
            f"`{names[int(text)]}` (or write {INDEX}{text})."
        )
    raise UsageError(f"class `{shorten(text)}` does not exist in {split.name}; {_allowed(text, names)}.")


def _at_place(text: str, split: Split, names: tuple[str, ...]) -> int:
    if not re.fullmatch(r"\d{1,9}", text) or int(text) >= len(names):
        raise UsageError(f"class {shorten(text)} does not exist in {split.name}; {_allowed(text, names)}.")
    return int(text)


def _allowed(text: str, names: tuple[str, ...]) -> str:
    if unnamed(names):
        return f"allowed: 0..{len(names) - 1}"
    if len(names) <= 20:
        return nearest(text, names)
    close = nearest(text, names).partition("?")
    hint = f"{close[0]}? " if close[1] and close[0].startswith("did you mean") else ""
    return f"{hint}{'Allowed' if hint else 'allowed'}: {', '.join(names[:8])}, ... ({len(names)} names)"
