"""Data sets that users register by a function of their own, which returns arrays or encoded images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from expunge.core.errors import DataError, ExpungeError, shorten
from expunge.core.registry import Card
from expunge.data import DATASETS
from expunge.data.arrays import raw_from_arrays
from expunge.data.images import Encoded
from expunge.data.parts import PARTS
from expunge.data.raw import Raw

F = TypeVar("F", bound=Callable[[], Any])


@dataclass(frozen=True)
class UserDataSet:
    """A registered function; what it returns is described at `data_set`."""

    card: Card
    read: Callable[[], Any]
    classes: tuple[str, ...] | None = None

    def parts(self) -> dict[str, Raw]:
        """Its parts, images not decoded. Raises `DataError` if the function fails, or for what cannot be read."""
        name = self.card.name
        try:
            returned = self.read()
        except ExpungeError:
            raise
        except Exception as error:  # a user's function may raise anything; the message names it
            raise DataError(f"data set `{name}` cannot be read: {type(error).__name__}: {error}.") from error
        parts = returned if isinstance(returned, Mapping) else {"train": returned}
        stray = next((part for part in parts if part not in PARTS), None)
        if stray is not None or "train" not in parts:
            raise DataError(
                f"data set `{name}` returns the parts {', '.join(map(str, parts)) or 'none'}; it must return `train`, "
                "and may return `validation` and `test`."
            )
        return {part: replace(_raw(value, f"{name}, {part}"), names=self.classes) for part, value in parts.items()}


def data_set(name: str, *, summary: str, classes: Sequence[str] | None = None) -> Callable[[F], F]:
    """Function decorator: register a data set under `name`, for `--data NAME`, studies and `load_pair`.

    In a package, name the function in the entry-point group `expunge.datasets`. Without a package, write
    `--data path/to/file.py:function`.

    Args:
        name: How users write it.
        summary: One line for `expunge list datasets`.
        classes: Names of the classes in order; default: the labels say them.

    The function takes no arguments and returns a mapping with `train`, and where there are such, `validation` and
    `test`; or the training part alone. A part is (samples, labels) or (samples, labels, ids):

    - samples: an array (N, ...), images as uint8 (N, H, W), (N, H, W, C) or (N, C, H, W); or N encoded images (JPEG,
      PNG, ...), each as bytes or as the path of its file.
    - labels: (N,) class numbers or names, or one-hot rows.
    - ids: (N,) text or whole numbers by which samples are named in deletion requests; default: positions.

    Raises:
        ExpungeError: If the name is taken.

    Example:
        @expunge.data_set("points", summary="two points on a line")
        def points():
            return np.array([[0.0], [1.0]]), np.array(["left", "right"])
    """

    def decorate(function: F) -> F:
        card = Card(name=name, summary=summary, needs="a function of the user")
        built = UserDataSet(card, function, None if classes is None else tuple(map(str, classes)))
        function.card = card  # type: ignore[attr-defined]  # what the registry looks for
        function.data_set = built  # type: ignore[attr-defined]
        DATASETS.add(card, function)
        return function

    return decorate


def user_set(loaded: Any) -> UserDataSet | None:
    """The data set behind an entry of the registry; None for a public one."""
    built = getattr(loaded, "data_set", None)
    return built if isinstance(built, UserDataSet) else None


class GivenImages(Encoded):
    """Encoded images that a function returned."""

    def __init__(self, images: Sequence[bytes | Path], place: str) -> None:
        self.images = list(images)
        self.place = place

    def __len__(self) -> int:
        return len(self.images)

    def read(self, position: int) -> bytes | Path:
        return self.images[position]

    def where(self, position: int) -> str:
        image = self.images[position]
        return str(image) if isinstance(image, Path) else f"{self.place}, row {position}"


def _raw(part: Any, place: str) -> Raw:
    if not isinstance(part, (tuple, list)) or len(part) not in (2, 3):
        raise DataError(f"{place}: expected (samples, labels) or (samples, labels, ids), got {type(part).__name__}.")
    samples, labels = part[0], np.asarray(part[1])
    ids = np.asarray(part[2]) if len(part) == 3 else None
    images = _encoded(samples, place)
    if images is None:
        array = np.asarray(samples)
        if array.dtype.kind not in "biuf":
            kind = array.dtype if array.dtype.kind != "O" else type(samples[0]).__name__
            raise DataError(f"{place}: samples must be numbers, or encoded images as bytes or paths, got {kind}.")
        return raw_from_arrays(array, labels, place, ids)
    # The labels and ids are read as beside an array of as many rows.
    placeholder = np.zeros((len(images), 1), dtype=np.uint8)
    return replace(raw_from_arrays(placeholder, labels, place, ids), array=None, images=images)


def _encoded(samples: Any, place: str) -> GivenImages | None:
    """The images of a list of bytes and paths; None if the samples are something else."""
    if not isinstance(samples, (list, tuple)) or not samples or not isinstance(samples[0], (bytes, str, Path)):
        return None
    images = [Path(image) if isinstance(image, str) else image for image in samples]
    for row, image in enumerate(images):
        if not isinstance(image, (bytes, Path)):
            raise DataError(f"{place}, row {row}: expected bytes or a path, got {shorten(repr(image))}.")
    return GivenImages(images, place)
