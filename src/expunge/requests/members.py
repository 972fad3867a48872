"""Who a sample belongs to, and who the model was trained on, by keyed hashes: neither ledger nor file names anybody."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np

from expunge.core.errors import DataError
from expunge.core.files import write_text
from expunge.data.ids import columns_of
from expunge.data.split import Split
from expunge.data.values import as_text, key, kind_of, whole_numbers
from expunge.requests.case.keys import sample_hash, subject_hash


def of_subject(pepper: bytes, subject: str) -> str:
    """Hex hash of a subject, whose text is compared by the rule of `expunge.data.values`: `007` is not `7`."""
    return subject_hash(pepper, key(subject))


def of_samples(pepper: bytes, split: Split) -> np.ndarray:
    """Hex hashes (len(split),) of the samples' ids."""
    return np.array([sample_hash(pepper, name) for name in split.ids.tolist()], dtype="U64")


def owners(pepper: bytes, split: Split, column: str) -> np.ndarray:
    """Hex hashes (len(split),) of the subject that each sample belongs to, "" where none is named.

    Raises `DataError` if there is no such column.
    """
    columns = columns_of(split)
    if column not in columns:
        raise DataError(f"{split.name} has no column `{column}`; it has: {', '.join(sorted(columns))}.")
    names, which = np.unique(as_text(whole_numbers(columns[column])), return_inverse=True)
    return np.array([of_subject(pepper, name) if name else "" for name in names.tolist()], dtype="U64")[which]


def spellings(pepper: bytes, split: Split, column: str) -> dict[str, str]:
    """Hash of `5.0` -> hash of `5`, for every whole number in a column of numbers; nothing for columns of text.

    Spreadsheets write an id as `5.0` where a cell of its column is empty. A request is stored before anybody knows the
    type of the column, so this is asked when the request is fulfilled; the texts `5.0` and `5` stay two subjects.
    """
    values = whole_numbers(columns_of(split)[column])
    if kind_of(values) != "integer":
        return {}
    names = [name for name in np.unique(as_text(values)).tolist() if name]
    return {of_subject(pepper, f"{name}.0"): of_subject(pepper, name) for name in names}


def write_members(path: Path, hashes: Iterable[str]) -> None:
    """One per line; sorted, so that the file says nothing about the order of the data."""
    write_text(path, "".join(f"{one}\n" for one in sorted(hashes)))


def read_members(path: Path) -> set[str]:
    """Read a file of members; raises `DataError` if it cannot be read."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); restore it from a backup.") from None
    if not lines or any(len(line) != len(lines[0]) for line in lines):
        raise DataError(f"{path} is damaged; restore it from a backup.")
    return set(lines)


def select(split: Split, hashes: np.ndarray, wanted: Collection[str], name: str, *, but: Collection[str] = ()) -> Split:
    """The samples of `split` whose hash is among `wanted` and not among `but`, in the order of the data."""
    chosen = np.fromiter((one in wanted and one not in but for one in hashes.tolist()), dtype=bool, count=len(hashes))
    return split.take(split.index[chosen], name)
