"""Folders: Parquet files named by split, or images in one sub-folder per class."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from expunge.core.errors import DataError
from expunge.data.cache import source_key
from expunge.data.images import Encoded
from expunge.data.raw import Columns, Raw
from expunge.data.table import LABELS, read_parquet

TRAIN = ("train", "training")
TEST = ("test", "testing", "valid", "validation", "val")


class FileImages(Encoded):
    """One image per file."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def read(self, position: int) -> Path:
        return self.files[position]

    def where(self, position: int) -> str:
        return str(self.files[position])


def read_folder(root: Path, columns: Columns, *, train: str = "train", test: str = "test") -> dict[str, Raw]:
    """All parts found under `root`: Parquet files (also one folder down), else images. `DataError` if there is none."""
    parquet = find_parquet(root, (train, *TRAIN), (test, *TEST))
    if parquet:
        return {split: read_parquet(files, split, columns) for split, files in parquet.items()}
    suffixes = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    folders = {
        "train": next((root / n for n in (train, *TRAIN) if (root / n).is_dir()), None),
        "test": next((root / n for n in (test, *TEST) if (root / n).is_dir()), None),
    }
    if folders["train"] is None:
        folders = {"train": root}
    found = {split: read_images(path, root, columns, suffixes) for split, path in folders.items() if path is not None}
    return found


def find_parquet(root: Path, train: tuple[str, ...], test: tuple[str, ...]) -> dict[str, list[Path]]:
    """Files per split by their names (`train-00000-of-00002.parquet`, `test.parquet`), in file order."""
    files = sorted(root.glob("*.parquet")) or sorted(root.glob("*/*.parquet"))
    parents = {path.parent for path in files}
    if len(parents) > 1:
        raise DataError(f"{root} holds several data sets ({', '.join(sorted(p.name for p in parents))}); name one.")
    found: dict[str, list[Path]] = {}
    for split, names in (("train", train), ("test", test)):
        for name in names:
            matching = [path for path in files if path.stem.split("-")[0].lower() == name]
            if matching:
                found[split] = matching
                break
    if files and "train" not in found:
        if found:
            raise DataError(f"{root} holds no train-*.parquet, only {files[0].name}; training data are needed.")
        found["train"] = files
    return found


def read_images(folder: Path, root: Path, columns: Columns, suffixes: set[str]) -> Raw:
    """`folder/<class>/<image>`, or images with a `metadata.csv` that holds their labels; ids are paths under `root`."""
    table_path = folder / "metadata.csv"
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in suffixes and p.is_file())
    files = [p for p in files if not any(part.startswith(".") for part in p.relative_to(folder).parts)]
    if not files:
        raise DataError(f"{folder} holds no images and no parquet files; expected one sub-folder of images per class.")
    relative = [path.relative_to(folder).as_posix() for path in files]
    metadata = _metadata(table_path, relative) if table_path.exists() else {}
    label = columns.label or next((name for name in LABELS if name in metadata), None)
    if label is not None and label in metadata:
        labels = metadata.pop(label)
    elif columns.label is not None:
        raise DataError(f"{table_path} has no label column `{columns.label}`.")
    else:
        loose = [name for name in relative if "/" not in name]
        if loose:
            raise DataError(
                f"{folder / loose[0]} is in no class folder; expected one sub-folder per class, or a metadata.csv "
                "with the columns file_name and label."
            )
        labels = np.array([name.split("/")[0] for name in relative])
    ids = metadata.pop(columns.id) if columns.id else np.array([p.relative_to(root).as_posix() for p in files])
    return Raw(
        labels=labels,
        where=lambda row: str(files[row]),
        images=FileImages(files),
        ids=ids.astype(str),
        columns=metadata,
        key=lambda facts, cache: source_key(files, root, ["images", facts], cache),
    )


def _metadata(path: Path, relative: list[str]) -> dict[str, np.ndarray]:
    """Columns of a metadata.csv in the order of the files; every image needs a row."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            rows = list(csv.DictReader(handle))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {error}.") from None
    if not rows or "file_name" not in rows[0]:
        raise DataError(f"{path} needs a header with the column file_name and one row per image.")
    by_name = {row["file_name"]: row for row in rows}
    missing = [name for name in relative if name not in by_name]
    if missing:
        raise DataError(f"{path} has no row for {len(missing)} images, e.g. {missing[0]}.")
    return {
        name: numbers_or_text([by_name[file][name] or "" for file in relative])
        for name in rows[0]
        if name is not None and name != "file_name"
    }


def numbers_or_text(values: list[str]) -> np.ndarray:
    for kind in (np.int64, np.float64):
        try:
            return np.array(values, dtype=str).astype(kind)
        except ValueError:
            continue
    return np.array(values, dtype=str)
