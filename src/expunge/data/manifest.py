"""A list of image files as a data set: a CSV file with the columns file_name, label and, if wanted, split.

    file_name,label,split
    n000002/0001_01.jpg,n000002,train

Paths are relative to the list, or absolute. A column `id` holds the ids of the samples, which else are the file names:
a list that names a file more than once needs one. Other columns are metadata. Files may lie anywhere, so one folder of
images can serve many data sets without a copy.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from expunge.core.errors import DataError, ExpungeError, nearest
from expunge.data.cache import source_key
from expunge.data.folder import TEST, TRAIN, FileImages, numbers_or_text
from expunge.data.raw import Columns, Raw

FILE = "file_name"
SUFFIXES = (".jpg", ".jpeg", ".png")


def is_manifest(path: Path) -> bool:
    """Whether the header of a CSV file names image files."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            return FILE in next(csv.reader(handle), [])
    except (OSError, UnicodeDecodeError, csv.Error):
        return False


def read_manifest(path: Path, columns: Columns) -> dict[str, Raw]:
    """Parts of the list by its column `split` (without one: all train). `DataError` names the line that is wrong."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            rows = list(csv.DictReader(handle))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {error}.") from None
    label = columns.label or "label"
    if not rows or label not in rows[0]:
        raise DataError(f"{path} needs the columns {FILE} and {label}, and one row per image.")
    ident = columns.id or ("id" if "id" in rows[0] else FILE)
    if ident not in rows[0]:
        raise DataError(f"{path} has no id column `{ident}`; {nearest(ident, rows[0])}.")
    parts: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        name = (row.get("split") or "train").lower()
        part = "train" if name in TRAIN else "test" if name in TEST else None
        if part is None:
            raise DataError(f"{path}, line {number + 2}: split `{name}`; allowed: train, test.")
        if not row[FILE] or not row[label]:
            raise DataError(f"{path}, line {number + 2}: the file name or the label is missing.")
        if not row[ident]:
            raise DataError(f"{path}, line {number + 2}: the id (column `{ident}`) is missing.")
        parts.setdefault(part, []).append(number)
    return {part: _part(path, rows, numbers, label, ident) for part, numbers in parts.items()}


def _part(path: Path, rows: list[dict[str, str]], numbers: list[int], label: str, ident: str) -> Raw:
    root = path.resolve().parent
    files = [root / rows[number][FILE] for number in numbers]
    missing = next((at for at, file in enumerate(files) if not file.is_file()), None)
    if missing is not None:
        raise DataError(f"{path}, line {numbers[missing] + 2}: there is no file {files[missing]}.")
    others = [name for name in rows[0] if name not in (FILE, label, "split", ident, None)]
    return Raw(
        labels=numbers_or_text([rows[number][label] for number in numbers]),
        where=lambda row: f"{path}, line {numbers[row] + 2} ({files[row]})",
        images=FileImages(files),
        ids=np.array([rows[number][ident] for number in numbers]),
        columns={name: numbers_or_text([rows[number][name] or "" for number in numbers]) for name in others},
        key=lambda facts, cache: source_key(files, root, ["manifest", facts], cache),
    )


def write_manifest(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> Path:
    """Write a list, whole or not at all; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
    part.replace(path)
    return path


def listing(
    module: str, arguments: Sequence[str], write: Callable[..., list[Path]], switches: Sequence[str] = ()
) -> int:
    """`python -m module [--switch] ARGUMENTS`: paths in, lists out; returns the exit code.

    switches: names of arguments of `write` that `--name` makes true.
    """
    chosen = {name: True for name in switches if f"--{name}" in sys.argv[1:]}
    given = [text for text in sys.argv[1:] if text.removeprefix("--") not in chosen]
    if len(given) != len(arguments) or any(text.startswith("--") for text in given):
        usage = " ".join([*(f"[--{name}]" for name in switches), *arguments])
        sys.stderr.write(f"usage: python -m {module} {usage}\n")
        return 2
    try:
        for path in write(*(Path(text) for text in given), **chosen):
            sys.stdout.write(f"written: {path}\n")
    except ExpungeError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except OSError as error:
        sys.stderr.write(f"error: the lists cannot be written: {error}.\n")
        return 1
    return 0
