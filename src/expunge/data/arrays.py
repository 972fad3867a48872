"""`.npz` and `.npy` files."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from expunge.core.errors import DataError
from expunge.data.raw import Raw

PAIRS = (("x", "y"), ("X", "y"), ("images", "labels"), ("data", "target"))
SIDES = (("x", "y"), ("X", "y"), ("X", "Y"), ("images", "labels"))


def read_npz(path: Path) -> dict[str, Raw]:
    """Keys x/y, X/y, images/labels, data/target, each also with `_train` and `_test`; never unpickles."""
    try:
        # numpy leaves a file open that it cannot read as a zip; this one is closed either way.
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as archive:
            keys = list(archive.files)
            parts: dict[str, Raw] = {}
            for split, ending in (("train", ("_train", "")), ("test", ("_test",))):
                pair = next(((a + e, b + e) for e in ending for a, b in PAIRS if {a + e, b + e} <= set(keys)), None)
                if pair is not None:
                    ids = archive["ids" + pair[0][1:]] if "ids" + pair[0][1:] in keys else None
                    parts[split] = raw_from_arrays(archive[pair[0]], archive[pair[1]], f"{path}, {pair[0]}", ids)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"cannot read {path}: {error}; expected plain arrays without pickled objects.") from None
    if "train" not in parts:
        raise DataError(f"{path} holds {', '.join(keys) or 'nothing'}; expected x and y, or x_train and y_train.")
    return parts


def read_npy(path: Path) -> dict[str, Raw]:
    """`x.npy` with `y.npy` beside it (or X, images/labels); `x_train.npy` brings `x_test.npy` along."""
    parts = {"train": _pair(path)}
    test = path.with_name(path.name.replace("train", "test"))
    if test != path and test.exists():
        parts["test"] = _pair(test)
    return parts


def _pair(path: Path) -> Raw:
    guesses = [path.with_name(b + path.name[len(a) :]) for a, b in SIDES if path.name.startswith(a)]
    labels = next((guess for guess in guesses if guess.exists() and guess != path), None)
    if labels is None:
        expected = guesses[0].name if guesses else "a file named x*.npy or images*.npy with its labels"
        raise DataError(f"there are no labels for {path}; expected {expected} beside it.")
    try:
        return raw_from_arrays(np.load(path, allow_pickle=False), np.load(labels, allow_pickle=False), str(path))
    except (OSError, ValueError, EOFError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"cannot read {path} or {labels}: {error}.") from None


def raw_from_arrays(samples: np.ndarray, labels: np.ndarray, place: str, ids: np.ndarray | None = None) -> Raw:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if samples.ndim < 2 or labels.ndim != 1 or len(samples) != len(labels):
        raise DataError(f"{place}: expected samples (N, ...) and labels (N,), got {samples.shape} and {labels.shape}.")
    return Raw(labels=labels, where=lambda row: f"{place}, row {row}", array=channels_first(samples), ids=ids)


def channels_first(samples: np.ndarray) -> np.ndarray:
    """uint8 (N, H, W) becomes (N, 1, H, W); (N, H, W, 1 or 3) of any type becomes (N, C, H, W); the rest stays."""
    if samples.ndim == 3 and samples.dtype == np.uint8:
        return samples[:, None]
    if samples.ndim == 4 and samples.shape[-1] in (1, 3) and samples.shape[1] not in (1, 3):
        return samples.transpose(0, 3, 1, 2)
    return samples
