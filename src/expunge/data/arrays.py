"""Reading `.npz` and `.npy` files."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np

from expunge.core.errors import DataError, shorten
from expunge.data.classes import from_one_hot
from expunge.data.parts import PARTS, Part
from expunge.data.raw import Raw
from expunge.data.values import as_column, as_text, whole_numbers

PAIRS = (("x", "y"), ("X", "y"), ("images", "labels"), ("data", "target"))
ENDINGS: dict[Part, tuple[str, ...]] = {"train": ("_train", ""), "validation": ("_val", "_valid"), "test": ("_test",)}
# NumPy's readers and zlib raise these on damaged files.
BROKEN = (
    OSError, ValueError, EOFError, KeyError, TypeError, SyntaxError, MemoryError, OverflowError, NotImplementedError,
    RuntimeError, RecursionError, IndexError, zipfile.BadZipFile, zlib.error, tokenize.TokenError,
)  # fmt: skip
SIDES = (("x", "y"), ("X", "y"), ("X", "Y"), ("images", "labels"))


def read_npz(path: Path) -> dict[str, Raw]:
    """Read the arrays x/y, X/y, images/labels or data/target, also with `_train`, `_test` and `_val`; never unpickles.

    Raises:
        DataError: if the file cannot be read or has no such arrays.
    """
    try:
        # numpy leaves a file open that it cannot read as a zip; here it is closed in any case.
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as archive:
            keys = list(archive.files)
            parts: dict[str, Raw] = {}
            for part in PARTS:
                pair = next(
                    ((a + e, b + e, f"ids{e}") for e in ENDINGS[part] for a, b in PAIRS if {a + e, b + e} <= set(keys)),
                    None,
                )
                if pair is not None:
                    ids = archive[pair[2]] if pair[2] in keys else None
                    parts[part] = raw_from_arrays(archive[pair[0]], archive[pair[1]], f"{path}, {pair[0]}", ids)
    except BROKEN as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"cannot read {path}: {shorten(str(error))}; expected plain arrays without pickled objects."
        ) from None
    if "train" not in parts:
        raise DataError(f"{path} holds {', '.join(keys) or 'nothing'}; expected x and y, or x_train and y_train.")
    return parts


def read_npy(path: Path) -> dict[str, Raw]:
    """Read `x.npy` and `y.npy` (or X, images/labels) of one folder; with `x_train.npy` also `x_test.npy`.

    Raises:
        DataError: if a file cannot be read or has no labels.
    """
    parts = {"train": _pair(path)}
    for part, ending in (("test", "test"), ("validation", "val")):
        other = path.with_name(path.name.replace("train", ending))
        if other != path and other.exists():
            parts[part] = _pair(other)
    return parts


def _pair(path: Path) -> Raw:
    guesses = [path.with_name(b + path.name[len(a) :]) for a, b in SIDES if path.name.startswith(a)]
    labels = next((guess for guess in guesses if guess.exists() and guess != path), None)
    if labels is None:
        expected = guesses[0].name if guesses else "a file named x*.npy or images*.npy with its labels"
        raise DataError(f"there are no labels for {path}; expected {expected} in the same folder.")
    try:
        return raw_from_arrays(np.load(path, allow_pickle=False), np.load(labels, allow_pickle=False), str(path))
    except BROKEN as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"cannot read {path} or {labels}: {shorten(str(error))}.") from None


def raw_from_arrays(samples: np.ndarray, labels: np.ndarray, place: str, ids: np.ndarray | None = None) -> Raw:
    """Check and wrap arrays.

    Args:
        samples: (N, ...).
        labels: (N,), or one-hot (N, classes).
        place: file and array, for messages.
        ids: (N,), if there are any.

    Raises:
        DataError: for other shapes.
    """
    if labels.ndim == 2:
        try:
            labels = from_one_hot(labels)
        except DataError as error:
            raise DataError(f"{place}: {error}") from None
    if samples.ndim < 2 or labels.ndim != 1 or len(samples) != len(labels):
        raise DataError(f"{place}: expected samples (N, ...) and labels (N,), got {samples.shape} and {labels.shape}.")
    if ids is not None and (ids.ndim != 1 or len(ids) != len(labels)):
        raise DataError(
            f"{place}: expected one id for each of the {len(labels)} samples, got ids of shape {ids.shape}."
        )
    return Raw(
        labels=as_column(labels),
        where=lambda row: f"{place}, row {row}",
        array=channels_first(samples),
        ids=None if ids is None else as_text(whole_numbers(as_column(ids))),
        id_name="" if ids is None else "ids",
    )


def channels_first(samples: np.ndarray) -> np.ndarray:
    """Images as (N, C, H, W): from uint8 (N, H, W) or any (N, H, W, 1 or 3); other samples are returned unchanged."""
    if samples.ndim == 3 and samples.dtype == np.uint8:
        return samples[:, None]
    if samples.ndim == 4 and samples.shape[-1] in (1, 3) and samples.shape[1] not in (1, 3):
        return samples.transpose(0, 3, 1, 2)
    return samples
