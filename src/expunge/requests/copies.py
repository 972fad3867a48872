"""Copies of forgotten samples in what Expunge keeps: which there are, and what is to be removed or kept.

A fulfilment remembers what its samples look like: their content hashes, keyed with the pepper of the workspace, so that
nobody else can try guesses against them. An entry of the cache (`core.entries`) is a copy if it holds such a sample or
was computed from one. Where that cannot be told (an entry of unknown origin, data that stream, samples decoded in
another form), it counts as one: what is removed without need is only made again.

copies/000012.json    what the samples of fulfilment 12 look like
copies/purge.json     what a purge is about to remove; gone when it is done
"""

from __future__ import annotations

import hmac
import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.core.entries import KINDS, Entry, entries, samples_of
from expunge.core.errors import DataError, UsageError, unknown
from expunge.core.files import write_text
from expunge.requests.records import Version

if TYPE_CHECKING:
    import numpy as np

    from expunge.data.origin import Facts

VERSIONS = "versions"
KEEPABLE = (VERSIONS, *(kind for kind in KINDS if kind != "precision"))
_JOURNAL = "purge.json"
_MANY = "pool"  # name of data that were put together from several parts


@dataclass(frozen=True)
class Memory:
    """What the samples of one fulfilment look like.

    Attributes:
        data: Name of the data set.
        path: Where it was.
        form: dtype and shape of one sample.
        samples: Keyed content hashes; None where the data stream.
    """

    data: str
    path: str
    form: str
    samples: frozenset[str] | None


@dataclass(frozen=True)
class Copy:
    """An entry of the cache that counts as a copy. why: in one clause."""

    entry: Entry
    why: str

    def row(self) -> dict[str, Any]:
        """JSON-ready, as case files and purge records hold it; without paths, which may name persons."""
        return {
            "what": KINDS[self.entry.kind],
            "place": f"cache/{self.entry.name}",
            "bytes": self.entry.bytes,
            "made_at": self.entry.written_at.isoformat(timespec="seconds"),
            "why": self.why,
        }


@dataclass(frozen=True)
class Purge:
    """What a purge removes, and what it keeps. kept: rows as `Copy.row`, `why` being the reason."""

    fulfilments: tuple[int, ...]
    versions: tuple[Version, ...]
    copies: tuple[Copy, ...]
    kept: tuple[Mapping[str, Any], ...]

    def __bool__(self) -> bool:
        return bool(self.versions or self.copies)

    def rows(self, models: Path) -> list[dict[str, Any]]:
        """What is removed. models: folder of the versions."""
        return [*(version_row(one, models, "knows the samples") for one in self.versions),
                *(one.row() for one in self.copies)]  # fmt: skip


def remember(folder: Path, pepper: bytes, number: int, facts: Facts, path: str) -> None:
    """Write down what the samples of a fulfilment look like. facts: `data.origin.origin_of` of them."""
    samples = facts["samples"]
    values = {
        "data": facts["data"],
        "path": path,
        "form": facts["form"],
        "samples": None if samples is None else sorted(_keyed(pepper, samples)),
    }
    write_text(folder / f"{number:06d}.json", json.dumps(values))


def recall(folder: Path, number: int) -> Memory:
    """What was remembered. Of a fulfilment by an earlier release nothing was, so everything may be a copy.

    Raises:
        DataError: If it is damaged.
    """
    path = folder / f"{number:06d}.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        samples = values["samples"]
        listed = None if samples is None else frozenset(map(str, samples))
        return Memory(str(values["data"]), str(values["path"]), str(values["form"]), listed)
    except FileNotFoundError:
        return Memory("", "", "", None)
    except (OSError, ValueError, LookupError, TypeError):
        raise DataError(f"{path} is damaged; restore it from a backup.") from None


def find(folder: Path, pepper: bytes, numbers: Collection[int], cache: Path) -> list[Copy]:
    """Entries of the cache that are copies of samples of these fulfilments, oldest first."""
    memories = [recall(folder, number) for number in numbers]
    if not memories:
        return []
    keyed: dict[str, frozenset[str] | None] = {}  # many entries are about the same samples
    found = []
    for entry in entries(cache):
        why = _why(entry, memories, pepper, cache, keyed) if entry.kind != "precision" else None
        if why is not None:
            found.append(Copy(entry, why))
    return found


def outside(paths: Sequence[str]) -> list[dict[str, Any]]:
    """Rows for what the settings name outside of workspace and cache; it is never deleted from here."""
    rows = []
    for text in paths:
        path = Path(text)
        if path.exists():
            rows.append({
                "what": "folder" if path.is_dir() else "file", "place": f"outside/{path.name}", "bytes": _bytes(path),
                "made_at": datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds"),
                "why": "outside of workspace and cache: to be deleted by hand",
            })  # fmt: skip
    return rows


def version_row(version: Version, models: Path, why: str) -> dict[str, Any]:
    """A version as `Copy.row` shows entries."""
    path = models / version.file
    return {
        "what": "model version",
        "place": f"models/{version.id[:12]}",
        "bytes": path.stat().st_size if path.is_file() else 0,
        "made_at": version.made_at.isoformat(timespec="seconds"),
        "why": why,
    }


def check_keep(keep: Sequence[str], reason: str) -> None:
    """Raises `UsageError` for kinds that are not known, and for what is kept without a reason."""
    for kind in keep:
        if kind not in KEEPABLE:
            raise unknown("kind", kind, KEEPABLE)
    if keep and not reason.strip():
        raise UsageError("what is kept needs a reason, which the signed record states; give it with --reason.")


def begin(folder: Path, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Write down what is about to be removed; returns it with what an interrupted purge had written down."""
    left = _read_journal(folder)
    places = {row["place"] for row in rows}
    planned = [*(row for row in left if row["place"] not in places), *map(dict, rows)]
    write_text(folder / _JOURNAL, json.dumps(planned))
    return planned


def interrupted(folder: Path) -> bool:
    """Whether a purge was cut off."""
    return (folder / _JOURNAL).is_file()


def end(folder: Path) -> None:
    """The purge is recorded."""
    (folder / _JOURNAL).unlink(missing_ok=True)


def _why(
    entry: Entry, memories: Sequence[Memory], pepper: bytes, cache: Path, keyed: dict[str, frozenset[str] | None]
) -> str | None:
    origin = entry.origin
    if origin is None:
        return "where it came from is not known"
    if entry.kind == "hashes":
        near = any(_related(origin.data, memory.path) for memory in memories)
        return "names the files of the data" if near else None
    if origin.samples is not None and origin.samples not in keyed:
        listed = samples_of(origin, cache)
        keyed[origin.samples] = None if listed is None else frozenset(_keyed(pepper, listed))
    held = None if origin.samples is None else keyed[origin.samples]
    count = 0
    for memory in memories:
        if held is None or memory.samples is None:
            if not memory.data or origin.data in ("", _MANY, memory.data):
                return f"made of {origin.data or 'data'} of which the samples are not known"
        elif held & memory.samples:
            count += len(held & memory.samples)
        elif origin.data == memory.data and origin.form != memory.form:
            return f"made of {origin.data} in another form, in which the samples cannot be told"
    if not count:
        return None
    verb = "holds" if entry.kind in ("data", "attacks") else "was made with"
    return f"{verb} {count:,} of the samples"


def _keyed(pepper: bytes, samples: np.ndarray) -> list[str]:
    """32 hex digits per content hash: HMAC-SHA256 under the pepper of `content:` and its 8 bytes."""
    return [hmac.digest(pepper, b"content:" + value, "sha256").hex()[:32] for value in _each(samples)]


def _each(samples: np.ndarray) -> list[bytes]:
    content = samples.astype("<u8").tobytes()
    return [content[start : start + 8] for start in range(0, len(content), 8)]


def _related(one: str, other: str) -> bool:
    """Whether two paths are the same, or one is above the other."""
    if not one or not other:
        return True
    a, b = Path(one).resolve(), Path(other).resolve()
    return a == b or a in b.parents or b in a.parents


def _bytes(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    walked = (Path(folder, name) for folder, _, names in os.walk(path) for name in names)
    return sum(one.lstat().st_size for one in walked if one.exists())


def _read_journal(folder: Path) -> list[dict[str, Any]]:
    try:
        rows = json.loads((folder / _JOURNAL).read_text(encoding="utf-8"))
        return [row for row in rows if isinstance(row, dict) and isinstance(row["place"], str)]
    except (OSError, ValueError, LookupError, TypeError):
        return []
