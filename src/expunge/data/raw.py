"""What every reader yields, before decoding; and how it becomes a `Split`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from expunge.core.errors import DataError, UsageError
from expunge.data.cache import cached_array
from expunge.data.images import Encoded, ImageItems, decode_sized, plan_for
from expunge.data.split import Normalisation, ResidentStore, Split, Store, StreamingStore

RESIDENT_BYTES = 2 << 30


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Column names the user chose; None means: find out."""

    image: str | None = None
    label: str | None = None
    id: str | None = None


@dataclass(frozen=True, kw_only=True)
class Raw:
    """One part ("train" or "test") of a source.

    labels: whole numbers or names. names: class names if the source states them. images or array hold the samples.
    key: the cache key of the decoded images for given decoding facts. where: names file and row of a sample.
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


def resident_limit() -> int:
    """Largest size in bytes of decoded samples that are kept in memory: `$EXPUNGE_RESIDENT_BYTES`, else 2 GiB."""
    given = os.environ.get("EXPUNGE_RESIDENT_BYTES")
    if given is None:
        return RESIDENT_BYTES
    if not given.isdigit():
        raise UsageError(f"EXPUNGE_RESIDENT_BYTES must be a whole number of bytes, got `{given}`.")
    return int(given)


def class_names(parts: Sequence[Raw], name: str) -> tuple[str, ...]:
    """The classes of all parts together, so that train and test agree on their numbers."""
    for raw in parts:
        if raw.names is not None:
            return raw.names
    if any(raw.labels.dtype.kind not in "iuf" for raw in parts):
        return tuple(sorted({str(label) for raw in parts for label in raw.labels.tolist()}))
    highest = max((int(raw.labels.max()) for raw in parts if len(raw.labels)), default=-1)
    if highest >= 100_000:
        raise DataError(f"{name}: label {highest} would mean {highest + 1:,} classes; name the right label column.")
    return tuple(str(i) for i in range(highest + 1))


def class_numbers(raw: Raw, classes: tuple[str, ...]) -> np.ndarray:
    """Labels as int64 in [0, len(classes)). Raises `DataError` with file and row."""
    labels = raw.labels
    if labels.dtype.kind not in "iufb":
        number = {name: i for i, name in enumerate(classes)}
        found = np.array([number.get(str(label), -1) for label in labels.tolist()], dtype=np.int64)
    elif labels.dtype.kind == "f":
        found = np.where(np.isfinite(labels) & (labels == np.round(labels)), np.nan_to_num(labels), -1).astype(np.int64)
    else:
        found = labels.astype(np.int64)
    bad = np.flatnonzero((found < 0) | (found >= len(classes)))
    if len(bad):
        row = int(bad[0])
        raise DataError(
            f"{raw.where(row)}: label {labels[row]} is none of the {len(classes)} classes; unlabelled samples cannot "
            "be used."
        )
    return found


def make_split(raw: Raw, classes: tuple[str, ...], *, name: str, image_size: int | None, cache: Path) -> Split:
    """Decode (or take from the cache) and wrap; resident if it fits `resident_limit`, else streaming."""
    labels = torch.from_numpy(class_numbers(raw, classes))
    if len(labels) == 0:
        raise DataError(f"{name}: there are no samples in it.")
    store = _image_store(raw, labels, classes, name, image_size, cache) if raw.images is not None else None
    if store is None:
        if raw.array is None or image_size is not None:
            raise UsageError(f"{name}: image_size is for encoded images; these samples are arrays.")
        store = ResidentStore(
            as_samples(raw.array, name, raw.where), labels, classes=classes, ids=raw.ids, columns=raw.columns, name=name
        )
    return Split.whole(store, name)


def _image_store(
    raw: Raw, labels: torch.Tensor, classes: tuple[str, ...], name: str, image_size: int | None, cache: Path
) -> Store:
    images = raw.images
    if images is None:  # the caller looked
        raise DataError(f"{name}: there are no images in it.")
    key = raw.key
    plan_facts = {"image_size": image_size}
    common = {"classes": classes, "ids": raw.ids, "columns": raw.columns, "name": name}
    store: Store
    # A few image headers decide the shape, also on a cache hit, which then decodes nothing.
    plan = plan_for(images, image_size)
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
            else cached_array(key(plan_facts, cache), cache, lambda: decode_sized(images, plan, image_size))
        )
        store = ResidentStore(torch.from_numpy(array), labels, **common)  # type: ignore[arg-type]
    if image_size is not None and store.input_shape[1:] != (image_size, image_size):
        store.resize = image_size
    return store


def as_samples(array: np.ndarray, name: str, where: Callable[[int], str] | None = None) -> torch.Tensor:
    """Samples as uint8 (images) or float32; `DataError` naming the first row that is not finite."""
    if array.dtype.kind not in "biuf":
        raise DataError(f"{name}: samples must be numbers, got {array.dtype}.")
    if array.dtype == np.uint8:
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
    """Mean and standard deviation per channel (per feature for rows), over the samples of `split`, pixels in [0, 1]."""
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
