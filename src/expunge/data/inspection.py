"""Inspection of a source: its parts, classes, columns and samples as they are read, and what is ignored.

`inspect` also works for data that cannot be used yet (missing labels, inconsistent classes): errors are listed as
problems instead of being raised.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from expunge.core.errors import DataError, UsageError
from expunge.data.classes import label_column
from expunge.data.convert import as_split
from expunge.data.duplicates import copies_among, repeated_in
from expunge.data.raw import Raw
from expunge.data.sources import DataOptions, Source, open_source
from expunge.data.split import ResidentStore, Split
from expunge.data.values import as_column, as_text, is_missing, kind_of

EXAMPLES = 3
PROBES = 64  # samples of streaming data that are read for their range


@dataclass(frozen=True)
class ColumnFacts:
    """One column of a part.

    Attributes:
        name: its name.
        role: label, id, feature or metadata.
        kind: integer, number, boolean or text.
        missing: number of cells without a value.
        distinct: number of different values.
        examples: the first values.
    """

    name: str
    role: str
    kind: str
    missing: int
    distinct: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class PartFacts:
    """One part of the data.

    Attributes:
        name: train, validation or test.
        rows: number of samples.
        counts: samples per class, in the order of the classes; empty if unknown.
        columns: its columns.
        shape: shape of a sample as given to the model.
        dtype: type of the stored samples.
        lowest: smallest value before normalisation (of 64 samples, if they stream).
        highest: largest value.
        streams: whether samples are read on demand.
        repeated: number of duplicates of earlier samples; None if unknown.
        ignored: notes on what is ignored, and why.
    """

    name: str
    rows: int
    counts: tuple[int, ...]
    columns: tuple[ColumnFacts, ...]
    shape: tuple[int, ...] | None = None
    dtype: str = ""
    lowest: float | None = None
    highest: float | None = None
    streams: bool = False
    repeated: int | None = None
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class Inspection:
    """Result of `inspect`.

    Attributes:
        source: as the caller named it.
        name: name of the data.
        classes: class names; empty if unknown.
        parts: the parts.
        shared: number of exact copies of training samples in the other parts.
        normalisation: (mean, standard deviation) per channel applied to pixels in [0, 1], or None.
        notes: what is ignored, and why.
        problems: errors that prevent the use of the data.
    """

    source: str
    name: str
    classes: tuple[str, ...]
    parts: tuple[PartFacts, ...]
    shared: Mapping[str, int] = field(default_factory=dict)
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """All attributes, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.name}: {len(self.classes)} classes ({_shortened(self.classes)})"]
        for part in self.parts:
            shape = "x".join(map(str, part.shape)) if part.shape else "unknown shape"
            lines.append(f"{part.name}: {part.rows:,} samples, {shape} {part.dtype}".rstrip())
        return "\n".join([*lines, *self.notes, *(f"problem: {problem}" for problem in self.problems)])


def inspect(data: Any, *, cache: Path | None = None, **options: Any) -> Inspection:
    """Report how data are read, without training anything.

    Args:
        data: a source as in `expunge.data.sources.load_pair` (a name, `hf:<id>`, a path), or data as in `as_split` (a
            split, a PyTorch or Hugging Face data set, (X, y)).
        cache: folder for decoded images, by default `$EXPUNGE_CACHE` or the user's cache folder.
        options: the fields of `expunge.data.sources.DataOptions`, for names and paths.

    Raises:
        UsageError: an unknown name or option.
        DataError: a source that cannot be read at all.
    """
    if isinstance(data, (str, Path)):
        return _of_source(open_source(data, DataOptions.of(options), cache))
    if options:
        raise UsageError(f"`{next(iter(options))}` is an option of files and named data; omit it for these data.")
    split = as_split(data)
    return Inspection(
        source=type(data).__name__,
        name=split.name,
        classes=split.store.classes,
        parts=(_of_split(split),),
        normalisation=_normalisation(split),
    )


def _of_source(source: Source) -> Inspection:
    problems: list[str] = []
    try:
        classes = source.classes
    except DataError as error:
        problems.append(str(error))
        classes = ()
    splits: dict[str, Split] = {}
    if classes:
        splits = _decoded(source, problems)
    parts = tuple(_of_raw(name, raw, classes, splits.get(name)) for name, raw in source.parts.items())
    train = splits.get("train")
    others = {name: split for name, split in splits.items() if name != "train"}
    notes = [*source.left_out]
    if source.test_part == "validation":
        notes.append("there is no test part; the validation part is used for tests")
    elif "validation" in source.parts:
        notes.append("the validation part is not used for training or tests; name it with --validation")
    return Inspection(
        source=source.spec,
        name=source.name,
        classes=classes,
        parts=parts,
        shared={} if train is None else {name: int(copies_among(split, train).sum()) for name, split in others.items()},
        normalisation=None if train is None else _normalisation(train),
        notes=tuple(notes),
        problems=tuple(dict.fromkeys(problems)),
    )


def _decoded(source: Source, problems: list[str]) -> dict[str, Split]:
    """All parts; if that fails, those that can be decoded alone."""
    try:
        return source.decoded(list(source.parts))
    except DataError as error:
        problems.append(str(error))
    splits: dict[str, Split] = {}
    for part in source.parts:
        try:
            splits |= source.decoded([part])
        except DataError as error:
            problems.append(str(error))
    return splits


def _of_raw(name: str, raw: Raw, classes: tuple[str, ...], split: Split | None) -> PartFacts:
    label = raw.label_name or ("class folder" if raw.images is not None else "y")
    named = as_column(np.array(raw.names, dtype=str)[raw.labels]) if raw.names and _numbers(raw) else raw.labels
    columns = [_column(label, "label", label_column(named) if named.ndim == 1 else named)]
    if raw.ids is not None:
        given = np.ma.MaskedArray(raw.ids, mask=np.char.startswith(raw.ids, "missing-id/"))
        columns.append(_column(raw.id_name or "(made)", "id", given))
    columns += [
        _column(column, "feature" if column in raw.features else "metadata", as_column(values))
        for column, values in raw.columns.items()
    ]
    hidden = len(raw.features) - sum(column.role == "feature" for column in columns)
    ignored = (*raw.ignored, *([f"{hidden} features are not listed"] if hidden else ()))
    if split is None:
        return PartFacts(name, len(raw.labels), (), tuple(columns), ignored=ignored)
    facts = _of_split(split, columns)
    return PartFacts(**{**vars(facts), "name": name, "ignored": ignored})


def _numbers(raw: Raw) -> bool:
    """Whether all labels are indices of the stated names."""
    labels = raw.labels
    if labels.ndim != 1 or kind_of(labels) != "integer" or is_missing(labels).any() or not len(labels):
        return False
    return bool(labels.min() >= 0 and labels.max() < len(raw.names or ()))


def _of_split(split: Split, columns: list[ColumnFacts] | None = None) -> PartFacts:
    store = split.store
    if columns is None:
        columns = [_column("id", "id", split.ids)]
        columns += [_column(name, "metadata", as_column(values)) for name, values in store.columns.items()]
    resident = isinstance(store, ResidentStore)
    rows = split.index if resident else split.index[np.linspace(0, len(split) - 1, min(PROBES, len(split)), dtype=int)]
    lowest, highest, dtype = None, None, ""
    for samples in store.fetch(list(rows.split(1024)), torch.device("cpu")):
        dtype = str(samples.dtype).removeprefix("torch.")
        if samples.numel():
            lowest = min(float(samples.min()), np.inf if lowest is None else lowest)
            highest = max(float(samples.max()), -np.inf if highest is None else highest)
    counts = np.bincount(split.y.numpy(), minlength=len(store.classes)).tolist() if split.has_labels else []
    return PartFacts(
        name=split.name,
        rows=len(split),
        counts=tuple(counts),
        columns=tuple(columns),
        shape=tuple(split.input_shape),
        dtype=dtype,
        lowest=lowest,
        highest=highest,
        streams=not resident,
        repeated=repeated_in(split) if resident else None,
    )


def _column(name: str, role: str, values: np.ndarray) -> ColumnFacts:
    texts = as_text(values) if values.ndim == 1 else np.array([str(row) for row in values[:EXAMPLES]])
    missing = is_missing(values) if values.ndim == 1 else np.zeros(len(texts), dtype=bool)
    present = texts[~missing]
    return ColumnFacts(
        name=name,
        role=role,
        kind=kind_of(values),
        missing=int(missing.sum()),
        distinct=len(np.unique(present)),
        examples=tuple(dict.fromkeys(present[:50].tolist()))[:EXAMPLES],
    )


def _normalisation(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    chosen = split.store.normalisation
    return None if chosen is None else (chosen.mean, chosen.std)


def _shortened(names: tuple[str, ...], most: int = 10) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
