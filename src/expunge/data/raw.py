"""The result of all readers, before decoding, and its conversion to a `Split`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from expunge.core.errors import DataError, UsageError
from expunge.data.cache import cached_array
from expunge.data.classes import class_numbers
from expunge.data.images import Encoded, ImageItems, Mode, decode_sized, decoder, plan_for
from expunge.data.split import Normalisation, ResidentStore, Split, Store, StreamingStore

RESIDENT_BYTES = 2 << 30


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Column names that the user chose, None if they are to be inferred, and the columns that are not features."""

    image: str | None = None
    label: str | None = None
    id: str | None = None
    metadata: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Raw:
    """One part ("train", "validation" or "test") of a source.

    Attributes:
        labels: typed values (n,), see `expunge.data.classes`.
        where: file and row of a sample, for messages.
        names: class names if the source states them.
        images: the samples as encoded images, or None.
        array: the samples as an array (n, ...), or None.
        ids: text (n,).
        columns: typed metadata (n,), see `expunge.data.values`.
        key: cache key of the decoded images for given decoding facts.
        spill: moves encoded images from memory to a file in the cache folder.
        label_name: column of the labels, "" if they do not come from one.
        id_name: column of the ids, likewise.
        features: the columns that are the input.
        ignored: notes on what is ignored, and why.
    """

    labels: np.ndarray
    where: Callable[[int], str]
    names: tuple[str, ...] | None = None
    images: Encoded | None = None
    array: np.ndarray | None = None
    ids: np.ndarray | None = None
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    key: Callable[[object, Path], str] | None = None
    spill: Callable[[Path], None] | None = None
    label_name: str = ""
    id_name: str = ""
    features: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


def resident_limit() -> int:
    """Largest size in bytes of decoded samples held in memory: `$EXPUNGE_RESIDENT_BYTES`, else 2 GiB."""
    given = os.environ.get("EXPUNGE_RESIDENT_BYTES")
    if given is None:
        return RESIDENT_BYTES
    if not given.isdigit():
        raise UsageError(f"EXPUNGE_RESIDENT_BYTES must be a whole number of bytes, got `{given}`.")
    return int(given)


def make_split(
    raw: Raw, classes: tuple[str, ...], *, name: str, image_size: int | None, cache: Path, mode: Mode | None = None
) -> Split:
    """Decode a part, or read it from the cache; resident if it fits `resident_limit`, else streaming.

    Args:
        raw: the part.
        classes: class names.
        name: name of the split.
        image_size: side in pixels of the square images; None: unchanged.
        cache: the cache folder.
        mode: "L" for one channel or "RGB" for three; None: three if any image has colour.

    Raises:
        DataError: for bad samples or labels, with file and row.
        UsageError: if `image_size` or `mode` are given for arrays.
    """
    labels = torch.from_numpy(class_numbers(raw, classes))
    if len(labels) == 0:
        raise DataError(f"{name}: there are no samples in it.")
    store = _image_store(raw, labels, classes, name, image_size, cache, mode) if raw.images is not None else None
    if store is None:
        if raw.array is None or image_size is not None or mode is not None:
            what = "image_size" if image_size is not None else "mode"
            raise UsageError(f"{name}: {what} is for encoded images; these samples are arrays.")
        store = ResidentStore(
            as_samples(raw.array, name, raw.where), labels, classes=classes, ids=raw.ids, columns=raw.columns, name=name
        )
    return Split.whole(store, name)


def _image_store(
    raw: Raw,
    labels: torch.Tensor,
    classes: tuple[str, ...],
    name: str,
    image_size: int | None,
    cache: Path,
    mode: Mode | None,
) -> Store:
    images = raw.images
    if images is None:  # checked by the caller
        raise DataError(f"{name}: there are no images in it.")
    key = raw.key
    common = {"classes": classes, "ids": raw.ids, "columns": raw.columns, "name": name}
    store: Store
    # A few image headers decide the shape, also on a cache hit, which then decodes nothing.
    plan = plan_for(images, image_size, mode)
    plan_facts = {"image_size": image_size, "mode": mode, "decoder": decoder()}
    if len(images) * int(np.prod(plan.shape)) > resident_limit():
        if raw.spill is not None:
            raw.spill(cache)
        count = os.cpu_count() or 1
        workers = 0 if count < 4 else min(8, count // 2)
        store = StreamingStore(ImageItems(images, plan), labels, workers=workers, **common)  # type: ignore[arg-type]
    else:
        array = (
            decode_sized(images, plan, image_size)
            if key is None
            else cached_array(key(plan_facts, cache), cache, lambda: decode_sized(images, plan, image_size), name=name)
        )
        store = ResidentStore(torch.from_numpy(array), labels, **common)  # type: ignore[arg-type]
    if image_size is not None and store.input_shape[1:] != (image_size, image_size):
        store.resize = image_size
    return store


def as_samples(array: np.ndarray, name: str, where: Callable[[int], str] | None = None) -> torch.Tensor:
    """Samples as a tensor of integers of their type, or of float32.

    torch supports few unsigned types: uint16 becomes int32, and uint32 and uint64 become int64.

    Raises:
        DataError: naming the first row that is not finite, or for samples that are not numbers.
    """
    if array.dtype.kind not in "biuf":
        raise DataError(f"{name}: samples must be numbers, got {array.dtype}.")
    if array.dtype.kind in "iu":
        if array.dtype.kind == "u" and array.dtype.itemsize > 1:
            if array.size and int(array.max()) > np.iinfo(np.int64).max:
                raise DataError(f"{name}: {int(array.max())} does not fit a 64-bit signed integer.")
            array = array.astype(np.int32 if array.dtype.itemsize == 2 else np.int64)
        return torch.from_numpy(np.require(array, requirements=["C", "W"]))
    with np.errstate(over="ignore"):
        samples = np.require(array.astype(np.float32, copy=False), requirements=["C", "W"])
    finite = np.isfinite(samples.reshape(len(samples), -1)).all(axis=1) if len(samples) else np.ones(0, dtype=bool)
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0])
        place = where(row) if where is not None else f"{name}, row {row}"
        raise DataError(f"{place}: the sample holds NaN or infinite values; {int((~finite).sum())} rows do.")
    return torch.from_numpy(samples)


def computed_normalisation(split: Split) -> Normalisation:
    """Mean and standard deviation per channel (or feature) over the samples of `split`, with pixels in [0, 1]."""
    total = torch.zeros(0, dtype=torch.float64)
    squares, count = total, 0
    for raw in split.store.fetch(list(split.index.split(1024)), torch.device("cpu")):
        x = raw.to(torch.float64) / (255 if raw.dtype == torch.uint8 else 1)
        axes = [d for d in range(x.dim()) if d != 1]
        total = x.sum(axes) if count == 0 else total + x.sum(axes)
        squares = x.square().sum(axes) if count == 0 else squares + x.square().sum(axes)
        count += x.numel() // x.shape[1]
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(0).sqrt()
    std[std < 1e-6] = 1.0  # a constant channel is only shifted
    return Normalisation(tuple(mean.tolist()), tuple(std.tolist()))
