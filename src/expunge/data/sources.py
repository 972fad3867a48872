"""Loading of splits from a source that the user names: a catalogue name, a Hub id or a path.

load_pair("mnist"), load_pair("hf:uoft-cs/cifar10"), load_pair("data/cifar10"), load_data("rows.csv"),
load_pair("my_data.py:faces")
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch

from expunge.core.errors import DataError, UsageError, nearest, shorten
from expunge.core.user_code import is_user_code
from expunge.data import DATASETS, known_sets
from expunge.data.arrays import read_npy, read_npz
from expunge.data.cache import cache_root
from expunge.data.classes import chosen_order, class_names, is_unlabelled, unnamed
from expunge.data.folder import read_folder
from expunge.data.hub import read_hub
from expunge.data.images import Mode, plan_for
from expunge.data.known import CONSTANTS, KnownDataset
from expunge.data.manifest import is_manifest, read_manifest
from expunge.data.raw import Columns, Raw, computed_normalisation, make_split
from expunge.data.sets.digits import read_digits
from expunge.data.split import Normalisation, Split
from expunge.data.table import read_csv, read_parquet
from expunge.data.user_sets import user_set

log = logging.getLogger(__name__)

Normalise = Literal["standard", "none", "computed", "imagenet", "half", "scrub-cifar", "scrub-lacuna"]
NORMALISE: tuple[Normalise, ...] = get_args(Normalise)
SUFFIXES = (".parquet", ".npz", ".npy", ".csv")


def load_pair(spec: str | Path, *, cache: Path | None = None, **options: Any) -> tuple[Split, Split | None]:
    """Load the training split and, if the source has one, the test split, with the same classes.

    If a source has no test part but a validation part, that is the test split. A part without any label (missing, or
    -1) is ignored, unless it is the training part.

    Args:
        spec: a name of `expunge list datasets`, `hf:<id>[/config]`, or a path (docs/data.md): a folder of Parquet, CSV
            or image files, one .parquet, .npz, .npy or .csv file.
        cache: folder for decoded images, by default `$EXPUNGE_CACHE` or the user's cache folder.
        options: the fields of `DataOptions`.

    Raises:
        UsageError: an unknown name or option, or a missing extra.
        DataError: bad data, with file and row.
    """
    source = open_source(spec, DataOptions.of(options), cache)
    splits = source.decoded([part for part in ("train", source.test_part) if part is not None])
    return splits["train"], splits[source.test_part].named("test") if source.test_part is not None else None


def load_data(
    spec: str | Path,
    *,
    split: Literal["train", "validation", "test"] = "train",
    cache: Path | None = None,
    **options: Any,
) -> Split:
    """Load one split of a source; arguments and errors as in `load_pair`, and `DataError` if there is no such split."""
    source = open_source(spec, DataOptions.of(options), cache)
    part = source.test_part if split == "test" else split
    if part not in source.parts:
        left = "".join(f"; {sentence}" for sentence in source.left_out)
        raise DataError(f"{spec} has no {split} split; it has: {', '.join(source.parts)}{left}.")
    return source.decoded([part])[part].named(split)


def load_beside(spec: str | Path, train: Split, *, cache: Path | None = None, **options: Any) -> Split:
    """Load separate test or validation data: the test part of a source, else its training part.

    They get the classes, number of channels and normalisation of the training data.

    Args:
        spec: as in `load_pair`.
        train: the training data that they are used with.
        cache: as in `load_pair`.
        options: as in `load_pair`.

    Raises:
        UsageError: an unknown name or option.
        DataError: bad data, and a label that is no class of the training data.
    """
    chosen = DataOptions.of(options)
    source = open_source(spec, chosen, cache)
    part = source.test_part or "train"
    # If only these data name their classes, the names are kept: the order is that of the training data anyway.
    if chosen.classes is None and (source.parts[part].names is None or not unnamed(train.store.classes)):
        chosen = replace(chosen, classes=train.store.classes)
        source = replace(source, options=chosen)
    if source.parts[part].images is not None and chosen.mode is None and train.input_shape[:1] == (3,):
        source = replace(source, options=replace(chosen, mode="RGB"))
    split = source.decoded([part])[part]
    split.store.normalisation = train.store.normalisation
    return split


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """How a source is read; options that are None are inferred.

    Attributes:
        normalise: "standard" uses the data set's known constants (none for unknown data), "none" keeps pixels in
            [0, 1], "computed" uses mean and deviation of the training samples, "imagenet" the ImageNet constants,
            "half" 0.5 for mean and deviation of every channel, as for many vision transformers; "scrub-cifar" (for both
            CIFAR-10 and CIFAR-100) and "scrub-lacuna" the constants of the SCRUB authors' code.
        image_size: side in pixels to which images are resized: on the device if they are smaller, else while decoding.
        mode: "RGB" for three channels, "L" for one; None: three if any image has colour.
        classes: the classes in their order: names separated by commas or in a list, or a range such as 1..10.
        id_column: column of the ids.
        label_column: column of the labels.
        image_column: column of the images.
        metadata: columns of a table that are not features, separated by commas or in a list.
    """

    normalise: str = "standard"
    image_size: int | None = None
    mode: Mode | None = None
    classes: tuple[str, ...] | None = None
    id_column: str | None = None
    label_column: str | None = None
    image_column: str | None = None
    metadata: tuple[str, ...] = ()

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> DataOptions:
        """Check options, given as values or as text; raises `UsageError` naming the wrong option."""
        names = [f.name for f in fields(cls)]
        for name in given:
            if name not in names:
                raise UsageError(f"data have no option `{name}`; {nearest(name, names)}.")
        values = {name: value for name, value in given.items() if value is not None}
        if (normalise := values.get("normalise", "standard")) not in NORMALISE:
            raise UsageError(
                f"unknown normalisation `{shorten(str(normalise))}`; {nearest(str(normalise), NORMALISE)}."
            )
        if "image_size" in values:
            values["image_size"] = _whole(values["image_size"])
        if "mode" in values:
            values["mode"] = _mode(values["mode"])
        if "classes" in values:
            values["classes"] = chosen_order(_listed("classes", values["classes"], whole=True))
        if "metadata" in values:
            values["metadata"] = tuple(str(name).strip() for name in _listed("metadata", values["metadata"]))
        for name in ("id_column", "label_column", "image_column"):
            if name in values:
                if isinstance(values[name], bool):
                    raise UsageError(f"`{name}` must be the name of a column, got {values[name]}; put it in quotes.")
                values[name] = str(values[name])
        return cls(**values)

    @property
    def columns(self) -> Columns:
        """The chosen column names."""
        return Columns(image=self.image_column, label=self.label_column, id=self.id_column, metadata=self.metadata)


def _listed(name: str, value: Any, *, whole: bool = False) -> Any:
    """A list, also from text with commas; with `whole`, text is returned unchanged."""
    if isinstance(value, str):
        return value if whole else value.split(",")
    if not isinstance(value, (list, tuple)):
        raise UsageError(f"`{name}` must be names in a list or separated by commas, got {shorten(repr(value))}.")
    return value


def _whole(value: Any) -> int:
    try:
        number = int(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else 0
    except ValueError:
        number = 0
    if number < 1:
        raise UsageError(f"image_size must be at least 1, got {shorten(str(value))}.")
    return number


def _mode(value: Any) -> Mode:
    text = str(value).upper()
    for mode in get_args(Mode):
        if text == mode:
            return cast(Mode, mode)
    raise UsageError(
        f"unknown mode `{shorten(str(value))}`; allowed: L (grey, one channel), RGB (colour, three channels)."
    )


@dataclass(frozen=True, eq=False)
class Source:
    """A source with its parts, not yet decoded.

    Attributes:
        spec: as the user named it.
        name: name of the data.
        parts: the parts.
        known: the public data set that it is, if known.
        options: how it is read.
        cache: the cache folder.
        left_out: notes on parts that are not loaded.
    """

    spec: str
    name: str
    parts: dict[str, Raw]
    known: KnownDataset | None
    options: DataOptions
    cache: Path
    left_out: tuple[str, ...] = ()

    @property
    def test_part(self) -> str | None:
        """The part used for tests: test, else validation, else None."""
        return next((part for part in ("test", "validation") if part in self.parts), None)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Class names; raises `DataError` if the parts disagree."""
        return class_names(self.parts, self.name, self.options.classes)

    def decoded(self, wanted: Sequence[str]) -> dict[str, Split]:
        """Decode parts to splits with the same channels and normalisation; raises `DataError` for bad data."""
        splits = {part: self._split(part, self.options.mode) for part in wanted}
        if self.options.mode is None:
            # All parts have the same number of channels: colour in any part makes all parts colour.
            channels = {part: split.store.input_shape[0] for part, split in splits.items() if self.parts[part].images}
            probed = {part: self._channels(part) for part, raw in self.parts.items() if raw.images is not None}
            if 3 in {*channels.values(), *probed.values()} or (channels and self.options.normalise in CONSTANTS):
                splits |= {part: self._split(part, "RGB") for part, count in channels.items() if count == 1}
        usual = DataOptions()
        options = {field.name: getattr(self.options, field.name) for field in fields(DataOptions)}
        given = {name: value for name, value in options.items() if value != getattr(usual, name)}
        if "train" in splits and self.known is not None:
            _check_counts(self.known, splits["train"])
        for part, split in splits.items():
            split.store.normalisation = self._normalisation(splits, part)
            split.store.source = {"spec": self.spec, "split": "test" if part == self.test_part else part, **given}
        return splits

    def _split(self, part: str, mode: Mode | None) -> Split:
        size = self.options.image_size
        if size is None and self.known is not None:
            size = self.known.image_size
        raw = self.parts[part]
        return make_split(raw, self.classes, name=self.name, image_size=size, cache=self.cache, mode=mode).named(part)

    def _channels(self, part: str) -> int:
        images = self.parts[part].images
        return 0 if images is None or not len(images) else plan_for(images, None).shape[0]

    def _normalisation(self, splits: dict[str, Split], part: str) -> Normalisation | None:
        how, store = self.options.normalise, splits[part].store
        if how == "computed":
            train = splits.get("train") or self.decoded_plain("train", store.input_shape[0])
            return computed_normalisation(train)
        if how in CONSTANTS:
            source, mean, std = CONSTANTS[how]
            if len(store.input_shape) != 3 or store.input_shape[0] != 3:
                raise UsageError(
                    f"the {source} constants are for colour images; {self.name} has shape {store.input_shape}."
                )
            return Normalisation(mean, std)
        if how == "half":
            channels = store.input_shape[0] if len(store.input_shape) == 3 else 1
            return Normalisation((0.5,) * channels, (0.5,) * channels)
        return _standard(self.known, self.classes, splits[part]) if how == "standard" else None

    def decoded_plain(self, part: str, channels: int) -> Split:
        """A part that is needed for its statistics only."""
        colour = self.parts[part].images is not None and channels == 3
        return self._split(part, "RGB" if colour and self.options.mode is None else self.options.mode)


def open_source(spec: str | Path, options: DataOptions, cache: Path | None = None) -> Source:
    """Open a source and read everything but the images; errors as in `load_pair`."""
    root = cache if cache is not None else cache_root()
    parts, known, name = _open(spec, options.columns, root)
    left_out = []
    for part in [part for part in parts if part != "train" and is_unlabelled(parts[part])]:
        left_out.append(f"the {part} part has no labels and is not loaded ({len(parts[part].labels):,} rows)")
        log.info("%s: %s.", spec, left_out[-1])
        parts = {other: raw for other, raw in parts.items() if other != part}
    return Source(str(spec), name, parts, known, options, root, tuple(left_out))


def _open(spec: str | Path, columns: Columns, cache: Path) -> tuple[dict[str, Raw], KnownDataset | None, str]:
    text = str(spec)
    known: KnownDataset | None
    if isinstance(spec, str) and is_user_code(text) and not text.startswith("hf:") and not Path(text).exists():
        text = DATASETS.named(text)
    if isinstance(spec, str) and text in DATASETS.names():
        registered = DATASETS.load(text)
        if (own := user_set(registered)) is not None:
            return own.parts(), None, text
        known = cast(KnownDataset, registered)
        if known.name == "digits":
            return read_digits(cache), known, text
        return read_hub(known.hub, known.config, _fill(columns, known), known.train, known.test), known, text
    if text.startswith("hf:"):
        hub, config = _hub_id(text)
        known = next((k for k in known_sets() if k.hub == hub), None)
        if known is None:
            return read_hub(hub, config, columns), None, hub
        chosen = _fill(columns, known)
        return read_hub(hub, config or known.config, chosen, known.train, known.test), known, known.name
    path = Path(text).expanduser()
    named = _by_folder_name(path)
    if path.is_dir():
        return read_folder(path, columns), named, path.resolve().name
    if not path.exists():
        looks_like_path = len(path.parts) > 1 or path.suffix.lower() in SUFFIXES
        hint = "" if looks_like_path else f" or data set `{text}`; {nearest(text, DATASETS.names())}, hf:<id>"
        raise UsageError(f"there is no file or folder {path}{hint}.")
    return _read_file(path, columns), named, path.stem


def _read_file(path: Path, columns: Columns) -> dict[str, Raw]:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return read_parquet([path], "", columns, path.stem.split("-")[0])
    if suffix == ".npz":
        return read_npz(path)
    if suffix == ".npy":
        return read_npy(path)
    if suffix == ".csv":
        return read_manifest(path, columns) if is_manifest(path) else read_csv([path], "", columns)
    raise DataError(f"{path}: files of type `{suffix}` cannot be read; allowed: a folder, {', '.join(SUFFIXES)}.")


def _hub_id(text: str) -> tuple[str, str | None]:
    """Id and configuration of `hf:owner/name[/config]` or `hf:name`."""
    pieces = text.removeprefix("hf:").strip("/").split("/")
    if not all(pieces) or len(pieces) > 3:
        raise UsageError(f"`{text}` is not a Hub data set; write hf:owner/name or hf:owner/name/config.")
    return "/".join(pieces[:2]), pieces[2] if len(pieces) == 3 else None


def _fill(columns: Columns, known: KnownDataset) -> Columns:
    return replace(columns, image=columns.image or known.image, label=columns.label or known.label)


def _by_folder_name(path: Path) -> KnownDataset | None:
    plain = path.resolve().name.lower().replace("_", "").replace("-", "")
    return next((k for k in known_sets() if k.name.replace("-", "") == plain), None)


def _check_counts(known: KnownDataset, split: Split) -> None:
    """Warn if class sizes differ from the published set: random subsets then differ from those of the papers."""
    counts = tuple(torch.bincount(split.y, minlength=known.num_classes).tolist())
    if known.train_counts and counts != known.train_counts:
        log.warning(
            "%s has %s training samples per class, the published set has %s; random subsets of it are not those of "
            "the papers.", known.name, list(counts), list(known.train_counts)
        )  # fmt: skip


def _standard(known: KnownDataset | None, classes: tuple[str, ...], split: Split) -> Normalisation | None:
    """The known constants if name, class names and shape identify the data; else None."""
    if not len(split):
        return None
    shape = tuple(next(iter(split.store.fetch([split.index[:1]], split.index.device))).shape[1:])
    if known is not None and (shape[:1] != known.shape[:1] or len(classes) != known.num_classes):
        known = None  # a folder that only happens to have that name
    if known is None:
        known = next((k for k in known_sets() if k.matches(classes, shape)), None)
    return None if known is None else Normalisation(known.mean, known.std)
