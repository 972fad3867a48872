"""From what a user names (a catalogue name, a Hub id, a path) to splits.

load_pair("mnist"), load_pair("hf:uoft-cs/cifar10"), load_pair("data/cifar10"), load_data("rows.csv")
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import torch

from expunge.core.errors import DataError, UsageError, nearest
from expunge.data import DATASETS
from expunge.data.arrays import read_npy, read_npz
from expunge.data.cache import cache_root
from expunge.data.folder import read_folder
from expunge.data.hub import read_hub
from expunge.data.known import CONSTANTS, KnownDataset
from expunge.data.manifest import is_manifest, read_manifest
from expunge.data.raw import Columns, Raw, class_names, computed_normalisation, make_split
from expunge.data.sets.digits import read_digits
from expunge.data.split import Normalisation, Split
from expunge.data.table import read_csv, read_parquet

log = logging.getLogger(__name__)

Normalise = Literal["standard", "none", "computed", "imagenet", "half", "scrub-cifar", "scrub-lacuna"]
NORMALISE: tuple[Normalise, ...] = get_args(Normalise)
SUFFIXES = (".parquet", ".npz", ".npy", ".csv")


def load_pair(
    spec: str | Path,
    *,
    normalise: Normalise = "standard",
    image_size: int | None = None,
    cache: Path | None = None,
    id_column: str | None = None,
    label_column: str | None = None,
    image_column: str | None = None,
) -> tuple[Split, Split | None]:
    """The training split and, where the source has one, the test split; both know the same classes.

    spec: a name of `expunge list datasets`, `hf:<id>[/config]`, or a path: a folder of `train-*.parquet` and
    `test-*.parquet`, a folder of images (one sub-folder per class, optionally under train/ and test/), one .parquet,
    .npz, .npy or .csv file (a table, or a list of image files with the columns file_name, label and split).
    normalise: "standard" takes the data set's known constants (none for unknown data), "none" leaves pixels in [0, 1],
    "computed" takes mean and deviation of the training samples, "imagenet" the ImageNet constants, "half" 0.5
    for mean and deviation of every channel, as vision transformers are often trained; "scrub-cifar" (CIFAR-10 and
    CIFAR-100 alike) and "scrub-lacuna" the constants in the SCRUB authors' code.
    image_size: side of the square images are brought to: on the device if they are smaller, else while decoding.
    cache: folder for decoded images, by default `$EXPUNGE_CACHE` or the user's cache folder.
    *_column: names of columns where they cannot be guessed; a column named `id` holds the sample ids.

    Raises `UsageError` for an unknown name, option or missing extra, `DataError` (with file and row) for bad data.
    """
    root = cache if cache is not None else cache_root()
    parts, known, name = _open(spec, Columns(image=image_column, label=label_column, id=id_column), root)
    splits = {
        split: _finish(split, parts, known, name, normalise, image_size, root)
        for split in ("train", "test")
        if split in parts
    }
    return splits["train"], splits.get("test")


def load_data(
    spec: str | Path,
    *,
    split: Literal["train", "test"] = "train",
    normalise: Normalise = "standard",
    image_size: int | None = None,
    cache: Path | None = None,
    id_column: str | None = None,
    label_column: str | None = None,
    image_column: str | None = None,
) -> Split:
    """One split of a source; arguments as in `load_pair`. Raises `DataError` if the source has no such split."""
    root = cache if cache is not None else cache_root()
    parts, known, name = _open(spec, Columns(image=image_column, label=label_column, id=id_column), root)
    if split not in parts:
        raise DataError(f"{spec} has no {split} split; it has: {', '.join(parts)}.")
    return _finish(split, parts, known, name, normalise, image_size, root)


def _open(spec: str | Path, columns: Columns, cache: Path) -> tuple[dict[str, Raw], KnownDataset | None, str]:
    text = str(spec)
    if isinstance(spec, str) and text in DATASETS.names():
        known: KnownDataset = DATASETS.load(text)
        if known.name == "digits":
            return read_digits(cache), known, text
        return read_hub(known.hub, known.config, _fill(columns, known), known.train, known.test), known, text
    if text.startswith("hf:"):
        hub, config = _hub_id(text)
        found = next((k for k in map(DATASETS.load, DATASETS.names()) if k.hub == hub), None)
        if found is None:
            return read_hub(hub, config, columns), None, hub
        chosen = _fill(columns, found)
        return read_hub(hub, config or found.config, chosen, found.train, found.test), found, found.name
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
        return {"train": read_parquet([path], path.stem.split("-")[0], columns)}
    if suffix == ".npz":
        return read_npz(path)
    if suffix == ".npy":
        return read_npy(path)
    if suffix == ".csv":
        return read_manifest(path, columns) if is_manifest(path) else {"train": read_csv(path, columns)}
    raise DataError(f"{path}: files of type `{suffix}` cannot be read; allowed: a folder, {', '.join(SUFFIXES)}.")


def _hub_id(text: str) -> tuple[str, str | None]:
    """`hf:owner/name[/config]` or `hf:name`."""
    pieces = text.removeprefix("hf:").strip("/").split("/")
    if not all(pieces) or len(pieces) > 3:
        raise UsageError(f"`{text}` is not a Hub data set; write hf:owner/name or hf:owner/name/config.")
    return "/".join(pieces[:2]), pieces[2] if len(pieces) == 3 else None


def _fill(columns: Columns, known: KnownDataset) -> Columns:
    return replace(columns, image=columns.image or known.image, label=columns.label or known.label)


def _by_folder_name(path: Path) -> KnownDataset | None:
    plain = path.resolve().name.lower().replace("_", "").replace("-", "")
    return next((k for k in map(DATASETS.load, DATASETS.names()) if k.name.replace("-", "") == plain), None)


def _finish(
    split: str,
    parts: dict[str, Raw],
    known: KnownDataset | None,
    name: str,
    normalise: Normalise,
    image_size: int | None,
    cache: Path,
) -> Split:
    if normalise not in NORMALISE:
        raise UsageError(f"unknown normalisation `{normalise}`; {nearest(normalise, NORMALISE)}.")
    if image_size is not None and image_size < 1:
        raise UsageError(f"image_size must be at least 1, got {image_size}.")
    classes = class_names(list(parts.values()), name)
    size = image_size if image_size is not None or known is None else known.image_size

    def decode(part: str) -> Split:
        return make_split(parts[part], classes, name=name, image_size=size, cache=cache).named(part)

    made = decode(split)
    store = made.store
    if split == "train" and known is not None:
        _check_counts(known, made)
    if normalise == "computed":
        store.normalisation = computed_normalisation(made if split == "train" else decode("train"))
    elif normalise in CONSTANTS:
        whose, mean, std = CONSTANTS[normalise]
        if len(store.input_shape) != 3 or store.input_shape[0] != 3:
            raise UsageError(f"the {whose} constants are for colour images; {name} has shape {store.input_shape}.")
        store.normalisation = Normalisation(mean, std)
    elif normalise == "half":
        channels = store.input_shape[0] if len(store.input_shape) == 3 else 1
        store.normalisation = Normalisation((0.5,) * channels, (0.5,) * channels)
    elif normalise == "standard":
        store.normalisation = _standard(known, classes, made)
    return made


def _check_counts(known: KnownDataset, split: Split) -> None:
    """Say it where classes have other sizes than the published set: sets drawn from it then differ from the papers'."""
    found = tuple(torch.bincount(split.y, minlength=known.num_classes).tolist())
    if known.train_counts and found != known.train_counts:
        log.warning(
            "%s has %s training samples per class, the published set has %s; sets that are drawn from it are not "
            "those of the papers.", known.name, list(found), list(known.train_counts)
        )  # fmt: skip


def _standard(known: KnownDataset | None, classes: tuple[str, ...], split: Split) -> Normalisation | None:
    """The known constants, if name or class names and shape say which data these are; else None."""
    shape = tuple(next(split.store.fetch([split.index[:1]], split.index.device)).shape[1:])
    if known is not None and (shape[:1] != known.shape[:1] or len(classes) != known.num_classes):
        known = None  # a folder that only happens to have that name
    if known is None:
        known = next((k for k in map(DATASETS.load, DATASETS.names()) if k.matches(classes, shape)), None)
    return None if known is None else Normalisation(known.mean, known.std)
