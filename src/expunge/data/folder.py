"""Reading folders: Parquet or CSV files named by part, or images in one sub-folder per class."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
from PIL import Image

from expunge.core.errors import DataError
from expunge.data.cache import source_key
from expunge.data.images import Encoded
from expunge.data.parts import PARTS, Part, is_unused, part_of
from expunge.data.raw import Columns, Raw
from expunge.data.table import LABELS, read_cells, read_csv, read_parquet
from expunge.data.values import as_text, from_cells

log = logging.getLogger(__name__)
METADATA = "metadata.csv"
FILE = "file_name"
_JUNK = ("__MACOSX",)


class FileImages(Encoded):
    """Images in files, one per file."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def read(self, position: int) -> Path:
        return self.files[position]

    def where(self, position: int) -> str:
        return str(self.files[position])


def image_suffixes() -> set[str]:
    """Suffixes of the image files that can be read, in lower case."""
    return {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}


def read_folder(root: Path, columns: Columns, *, named: Mapping[str, Part] | None = None) -> dict[str, Raw]:
    """Read all parts below `root`, at any depth: Parquet files, else images, else CSV files.

    Args:
        root: the folder.
        columns: column names that the caller chose.
        named: names of parts that the source is known to use.

    Raises:
        DataError: if the part or class of a file or folder is ambiguous; it lists what was understood.
    """
    tree = Tree(root)
    for suffix, read in ((".parquet", read_parquet), (".csv", read_csv)):
        files = [file for file in tree.files if file.suffix.lower() == suffix and file.name.lower() != METADATA]
        if suffix == ".csv" and any(file.suffix.lower() in image_suffixes() for file in tree.files):
            break  # CSV files in a folder of images are lists of them
        if files:
            parts, ignored = files_by_part(root, files, named or {})
            raws: dict[str, Raw] = {}
            for part, chosen in parts.items():
                raws |= read(chosen, part, columns, *(["train"] if suffix == ".parquet" and not part else []))
            return {part: replace(raw, ignored=(*raw.ignored, *ignored)) for part, raw in raws.items()}
    return read_images(tree, columns)


def files_by_part(
    root: Path, files: Iterable[Path], named: Mapping[str, Part]
) -> tuple[dict[str, list[Path]], tuple[str, ...]]:
    """Files of each part, by their own names or else those of their folders, and notes on ignored files.

    If no name contains a part, all files are one table, of part "".
    """
    parts: dict[str, list[Path]] = {}
    bases: dict[str, set[Path]] = {}
    unknown: list[Path] = []
    unused: list[Path] = []
    for file in sorted(files):
        relative = file.relative_to(root)
        tokens = [relative.stem, *reversed(relative.parts[:-1])]
        part = next((known for token in tokens if (known := _part(token, named)) is not None), None)
        if part is None:
            (unused if any(is_unused(token) for token in tokens) else unknown).append(file)
            continue
        parts.setdefault(part, []).append(file)
        # The folder without the name of its part identifies the data set.
        base = Path(*(name for name in relative.parts[:-1] if _part(name, named) is None))
        bases.setdefault(part, set()).add(base)
    if unknown and parts:
        understood = "; ".join(f"{part}: {', '.join(_shown(root, chosen))}" for part, chosen in parts.items())
        raise DataError(
            f"{root}: the part of {', '.join(_shown(root, unknown))} is not known (understood: {understood}); "
            "rename the file so that it says train, validation or test, or move it away."
        )
    if unknown:
        parts = {"": unknown}
        bases = {"": {file.parent.relative_to(root) for file in unknown}}
    several = set().union(*bases.values()) if bases else set()
    if len(several) > 1:
        raise DataError(f"{root} holds several data sets ({', '.join(sorted(map(str, several)))}); name one.")
    if parts and not parts.keys() & {"train", ""}:
        some = ", ".join(_shown(root, next(iter(parts.values()))))
        raise DataError(
            f"{root} holds no training data, only {some}; name a file train, or name it itself as the data."
        )
    ignored = (f"{len(unused)} files of no part: {', '.join(_shown(root, unused))}",) if unused else ()
    return {part: parts[part] for part in (*PARTS, "") if part in parts}, ignored


def _part(name: str, named: Mapping[str, Part]) -> Part | None:
    return named.get(name.split("-")[0]) or part_of(name)


def _shown(root: Path, files: list[Path], most: int = 3) -> list[str]:
    names = [file.relative_to(root).as_posix() for file in files[:most]]
    return [*names, "..."] if len(files) > most else names


class Tree:
    """The files below a folder, following links; hidden files and folders are ignored."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: list[Path] = []
        self.empty: list[Path] = []  # folders without any file below them
        self.hidden = 0
        self._walk(root, ())
        self.files.sort()

    def _walk(self, folder: Path, above: tuple[str, ...]) -> int:
        real = os.path.realpath(folder)
        if real in above:
            raise DataError(f"{folder} is a link to a folder that it is in; remove it.")
        count = 0
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(f"cannot read {folder}: {error.strerror or error}.") from None
        for entry in entries:
            path = Path(entry.path)
            if entry.name.startswith(".") or entry.name in _JUNK:
                self.hidden += 1
            elif entry.is_dir():
                below = self._walk(path, (*above, real))
                count += below
                if not below:
                    self.empty.append(path)
            elif entry.is_file():
                self.files.append(path)
                count += 1
            else:
                raise DataError(f"{path} is a link to nothing; remove it, or bring back what it points to.")
        return count


def read_images(tree: Tree, columns: Columns) -> dict[str, Raw]:
    """Read `[<part>/]<class>/<image>`, or images with labels in a `metadata.csv`; ids are paths below the folder.

    Raises:
        DataError: if the part or class of an image is missing or ambiguous.
    """
    root, suffixes = tree.root, image_suffixes()
    images = [file for file in tree.files if file.suffix.lower() in suffixes]
    if not images:
        raise DataError(
            f"{root} holds no images and no parquet or CSV files; expected one sub-folder of images per class."
        )
    others = [file for file in tree.files if file.suffix.lower() not in suffixes and file.name.lower() != METADATA]
    places = _FolderLevels(root, images)
    by_part: dict[Part, list[Path]] = {}
    for image in images:
        if (part := places.part(image)) is not None:
            by_part.setdefault(part, []).append(image)
    if "train" not in by_part:
        raise DataError(f"{root} holds no training images, only parts called {', '.join(by_part)}.")
    ignored = [*places.ignored]
    if others:
        ignored.append(f"{len(others)} files that are no images: {', '.join(_shown(root, others))}")
    if tree.hidden:
        ignored.append(f"{tree.hidden} hidden files or folders")
    raws = {part: _images_of(root, by_part[part], places, columns) for part in PARTS if part in by_part}
    _refuse_empty_classes(tree, list(raws.values()), places, images)
    return _with_names({part: replace(raw, ignored=(*raw.ignored, *ignored)) for part, raw in raws.items()}, root)


class _FolderLevels:
    """Which levels of a tree of image folders are parts, and which are classes."""

    def __init__(self, root: Path, images: list[Path]) -> None:
        self.root = root
        self.ignored: list[str] = []
        children: dict[Path, set[str]] = {}
        loose: set[Path] = {image.parent for image in images}
        for parent in {image.parent for image in images}:
            while parent != root:
                children.setdefault(parent.parent, set()).add(parent.name)
                parent = parent.parent
        self.part_levels = {folder for folder, names in children.items() if self._is_level(folder, names)}
        self.wrappers: set[Path] = set()
        folder = root
        while folder not in loose and len(children.get(folder, ())) == 1:
            below = folder / next(iter(children[folder]))
            if folder not in self.part_levels:
                if below in loose:
                    break  # one class, with its images
                self.wrappers.add(below)
            folder = below

    def _is_level(self, folder: Path, names: set[str]) -> bool:
        """Whether the sub-folders are parts: all names are parts, or "train" and another part are among them."""
        known = {name: part_of(name) for name in names}
        parts = set(known.values()) - {None}
        unknown = sorted(name for name, part in known.items() if part is None)
        if not parts or (unknown and ("train" not in parts or len(parts) < 2)):
            return False
        unused = [name for name in unknown if is_unused(name)]
        if len(unused) < len(unknown):
            understood = ", ".join(f"{name} is {part}" for name, part in sorted(known.items()) if part is not None)
            other = next(name for name in unknown if name not in unused)
            raise DataError(
                f"{folder}: the part of the folder {other} is not known ({understood}); rename it so that it says "
                "train, validation or test, or move it away."
            )
        if unused:
            self.ignored.append(f"folders of no part: {', '.join(unused)}")
        return True

    def part(self, image: Path) -> Part | None:
        """The part of an image: "train" if no folder names one, None for unused folders."""
        parts: set[Part | None] = set()
        folder = self.root
        for name in image.relative_to(self.root).parts[:-1]:
            if folder in self.part_levels:
                parts.add(part_of(name))
            folder = folder / name
        if len(parts) > 1:
            raise DataError(f"{image}: its folders name several parts; rename them.")
        return next(iter(parts), "train")

    def class_of(self, image: Path) -> str | None:
        """Name of the first folder that is neither a part nor a single folder around everything."""
        folder = self.root
        for name in image.relative_to(self.root).parts[:-1]:
            if folder not in self.part_levels and folder / name not in self.wrappers:
                return name
            folder = folder / name
        return None


def _images_of(root: Path, files: list[Path], places: _FolderLevels, columns: Columns) -> Raw:
    metadata, ignored = _metadata(root, files)
    label = columns.label or next((name for name in LABELS if name in metadata), None)
    if label is not None and label in metadata:
        labels = metadata.pop(label)
    elif columns.label is not None:
        raise DataError(f"{root} has no {METADATA} with the label column `{columns.label}`.")
    else:
        names = [places.class_of(file) for file in files]
        if None in names:
            raise DataError(
                f"{files[names.index(None)]} is in no class folder; expected one sub-folder per class, or a {METADATA} "
                "with the columns file_name and label."
            )
        label, labels = None, np.array(names, dtype=str)
    if columns.id is not None and columns.id not in metadata:
        raise DataError(f"{root} has no {METADATA} with the id column `{columns.id}`.")
    ids = as_text(metadata.pop(columns.id)) if columns.id else np.array([p.relative_to(root).as_posix() for p in files])
    if (ids == "").any():
        raise DataError(f"{files[int(np.flatnonzero(ids == '')[0])]} has no id in the column `{columns.id}`.")
    return Raw(
        labels=labels,
        where=lambda row: str(files[row]),
        images=FileImages(files),
        ids=ids,
        columns=metadata,
        key=lambda facts, cache: source_key(files, root, ["images", facts], cache),
        label_name=label or "",
        id_name=columns.id or "",
        ignored=tuple(ignored),
    )


def _with_names(raws: dict[str, Raw], root: Path) -> dict[str, Raw]:
    """Class folders as class names, in the order of torchvision's `ImageFolder`: a folder `10` precedes `9`."""
    if any(raw.label_name for raw in raws.values()):
        return raws
    names = np.unique(raws["train"].labels)
    for part, raw in raws.items():
        new = np.setdiff1d(raw.labels, names)
        if len(new):
            raise DataError(
                f"{root}: the {part} part has class folders that the training part has not: {', '.join(new[:3])}; "
                f"training has {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}."
            )
    if all(name.isdigit() for name in names.tolist()) and sorted(names.tolist(), key=int) != names.tolist():
        log.info(
            "the class folders of %s are ordered as text, as torchvision does: %s, ...", root, ", ".join(names[:4])
        )
    stated = tuple(names.tolist())
    return {part: replace(raw, labels=np.searchsorted(names, raw.labels), names=stated) for part, raw in raws.items()}


def _refuse_empty_classes(tree: Tree, raws: list[Raw], places: _FolderLevels, images: list[Path]) -> None:
    """Raise `DataError` for a folder on the level of classes without an image: its class would be missing."""
    if any(raw.label_name for raw in raws):
        return
    with_images = {folder for image in images for folder in image.parents}
    class_level = set()
    for image in images:
        folder = tree.root
        for name in image.relative_to(tree.root).parts[:-1]:
            if folder not in places.part_levels and folder / name not in places.wrappers:
                class_level.add(folder)
                break
            folder = folder / name
    candidates = {file.parent for file in tree.files} | set(tree.empty)
    for folder in sorted(candidates):
        if folder not in with_images and folder.parent in class_level:
            raise DataError(f"the class folder {folder} holds no image that can be read; add images, or remove it.")


def _metadata(root: Path, files: list[Path]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Typed columns of the metadata.csv files in the order of the images, which all need a row.

    Such a file may be in the folder itself or in that of a part; its file names are relative to it.
    """
    bases = {folder for file in files for folder in file.parents if folder == root or folder.is_relative_to(root)}
    tables = {base: base / METADATA for base in sorted(bases) if (base / METADATA).is_file()}
    if not tables:
        return {}, []
    rows: dict[Path, tuple[Path, int]] = {}
    cells: dict[Path, pa.Table] = {}
    for base, path in tables.items():
        cells[path] = read_cells(path)
        if FILE not in cells[path].column_names or not len(cells[path]):
            raise DataError(f"{path} needs a header with the column {FILE} and one row per image.")
        for number, name in enumerate(cells[path].column(FILE).to_pylist()):
            image = base / PurePosixPath(name.strip().replace("\\", "/"))
            if image in rows:
                raise DataError(f"{path}, line {number + 2}: {name} has a row already; keep one of them.")
            rows[image] = path, number
    missing = [file for file in files if file not in rows]
    if missing:
        path = next(iter(tables.values()))
        name = missing[0].relative_to(path.parent) if missing[0].is_relative_to(path.parent) else missing[0]
        raise DataError(f"{path} has no row for {len(missing)} images, e.g. {name.as_posix()}.")
    used = [rows[file] for file in files]
    names = dict.fromkeys(name for path, _ in used for name in cells[path].column_names if name != FILE)
    listed = {path: {name: cells[path].column(name).to_pylist() for name in cells[path].column_names} for path in cells}
    columns = {
        name: from_cells([listed[path].get(name, [None] * (row + 1))[row] for path, row in used]) for name in names
    }
    absent = [image for image in rows if not image.is_file()]
    shown = ", ".join(str(image.name) for image in absent[:3])
    return columns, [f"{len(absent)} rows of {METADATA} name files that are not there: {shown}"] if absent else []
