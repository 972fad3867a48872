"""A list of image files as a data set: a CSV file with the columns file_name, label and, optionally, split.

    file_name,label,split
    n000002/0001_01.jpg,n000002,train

Paths are relative to the list, or absolute. A column `id` contains the ids of the samples; without it the file names
are the ids, so a list that names a file more than once needs one. Other columns are metadata. Files may be anywhere, so
one folder of images can serve many data sets without a copy. Parts are named as in `expunge.data.parts`.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from expunge.core.errors import DataError, ExpungeError, nearest
from expunge.data.cache import source_key
from expunge.data.folder import FILE, FileImages
from expunge.data.parts import part_of
from expunge.data.raw import Columns, Raw
from expunge.data.table import read_cells
from expunge.data.values import from_cells, ids_of_cells

SUFFIXES = (".jpg", ".jpeg", ".png")


def is_manifest(path: Path) -> bool:
    """Whether the header of a CSV file names image files."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            return FILE in next(csv.reader(handle), [])
    except (OSError, UnicodeDecodeError, csv.Error):
        return False


def read_manifest(path: Path, columns: Columns) -> dict[str, Raw]:
    """Read the parts of a list by its column `split`, without which all rows are for training.

    Raises:
        DataError: naming the first wrong line.
    """
    table = read_cells(path)
    names = table.column_names
    label = columns.label or "label"
    if not len(table) or label not in names:
        raise DataError(f"{path} needs the columns {FILE} and {label}, and one row per image.")
    ident = columns.id or ("id" if "id" in names else FILE)
    if ident not in names:
        raise DataError(f"{path} has no id column `{ident}`; {nearest(ident, names)}.")
    cells = {name: [cell.strip() for cell in table.column(name).to_pylist()] for name in names}
    for wanted in (FILE, label, ident):
        if "" in cells[wanted]:
            what = "the id" if wanted == ident != FILE else "the file name or the label"
            shown = f" (column `{ident}`)" if wanted == ident != FILE else ""
            raise DataError(f"{path}, line {cells[wanted].index('') + 2}: {what}{shown} is missing.")
    parts: dict[str, list[int]] = {}
    for number, name in enumerate(cells.get("split", [""] * len(table))):
        part = part_of(name) if name else "train"
        if part is None:
            raise DataError(f"{path}, line {number + 2}: split `{name}`; allowed: train, validation, test.")
        parts.setdefault(part, []).append(number)
    others = [name for name in names if name not in (FILE, label, "split", ident)]
    # Typed over the whole list, so that all parts agree.
    typed = {name: from_cells(cells[name]) for name in (label, *others)}
    return {part: _part(path, cells, typed, numbers, label, ident) for part, numbers in parts.items()}


def _part(
    path: Path, cells: dict[str, list[str]], typed: dict[str, np.ndarray], numbers: list[int], label: str, ident: str
) -> Raw:
    root = path.resolve().parent
    files = [root / cells[FILE][number] for number in numbers]
    missing = next((at for at, file in enumerate(files) if not file.is_file()), None)
    if missing is not None:
        raise DataError(f"{path}, line {numbers[missing] + 2}: there is no file {files[missing]}.")
    rows = np.array(numbers)
    return Raw(
        labels=typed[label][rows],
        where=lambda row: f"{path}, line {numbers[row] + 2} ({files[row]})",
        images=FileImages(files),
        ids=ids_of_cells(cells[ident])[rows],
        columns={name: column[rows] for name, column in typed.items() if name != label},
        key=lambda facts, cache: source_key(files, root, ["manifest", facts], cache),
        label_name=label,
        id_name=ident,
    )


def write_manifest(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> Path:
    """Write a list atomically, and create its folder; returns the path."""
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
    """Command line `python -m module [--switch] ARGUMENTS` of a module that writes lists.

    Args:
        module: name of the module.
        arguments: names of the positional arguments, which are paths.
        write: writes the lists and returns their paths.
        switches: names of boolean arguments of `write` that `--name` sets.

    Returns:
        The exit code.
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
