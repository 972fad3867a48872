"""Retention: retired versions of the model that still know what was forgotten are deleted, file and all.

What a version has forgotten: the samples of every fulfilment on its way back to the first version, its own included,
as far as it was fulfilled (or was, before a rollback). What it still knows of the forgotten: all that any fulfilled
request made the workspace forget, without that. An imported version counts as knowing everything.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from datetime import datetime, timedelta
from pathlib import Path

from expunge.core.errors import ExpungeError, UsageError
from expunge.core.options import Field, options
from expunge.requests.ledger.ledger import Ledger
from expunge.requests.ledger.rules import UNFINISHED
from expunge.requests.ledger.values import filename
from expunge.requests.records import Fulfilment, Version


@options
class Retention:
    """How long a way back is kept. A version stays only while it is within both limits."""

    keep_days: float = Field(30.0, ge=0, le=36_500, description="days that a retired version is kept at most")
    keep_versions: int = Field(1, ge=0, description="number of retired versions that are kept at most, the latest ones")


def still_known(versions: Collection[Version], fulfilments: Collection[Fulfilment]) -> dict[str, frozenset[str]]:
    """version id -> hashes of the samples that it knows although a fulfilled request forgot them.

    A fulfilment that failed proves nothing about its version, so that one is taken to know what its parent knew.
    """
    by_id = {version.id: version for version in versions}
    forgot = {work.id: frozenset(work.samples) for work in fulfilments if work.state in ("fulfilled", "rolled back")}
    fulfilled = [work.samples for work in fulfilments if work.state == "fulfilled"]
    gone = frozenset(sample for samples in fulfilled for sample in samples)
    return {version.id: gone - _forgotten_by(version, by_id, forgot) for version in versions}


def due(ledger: Ledger, retention: Retention, now: datetime) -> list[Version]:
    """Versions that the policy no longer keeps, oldest retirement first; never the active one, nor one in use."""
    versions, fulfilments = ledger.versions(), ledger.fulfilments()
    known = still_known(versions, fulfilments)
    there = [version for version in versions if version.deleted_at is None and not version.active]
    retired = [version for version in there if known[version.id] and version.id not in _in_use(fulfilments)]
    retired.sort(key=lambda version: (_retired_at(version), version.id))
    kept_since = now - timedelta(days=retention.keep_days)
    surplus = len(retired) - retention.keep_versions
    return [one for place, one in enumerate(retired) if _retired_at(one) < kept_since or place < surplus]


def purge(ledger: Ledger, folder: Path, versions: Collection[Version], by: str) -> list[Version]:
    """Delete the files of `versions` in `folder`, then say so in the ledger; returns them as they are now.

    The file goes first: killed in between, the next `due` names the version again, and a missing file is no error.
    Takes the ledger's claim unless it is held. Raises `ExpungeError` if a file cannot be deleted or lives on elsewhere.
    """
    purged = []
    with nullcontext() if ledger.claimed else ledger.claim():
        busy = _in_use(ledger.fulfilments())
        for version in versions:
            current = ledger.version(version.id)
            if current.active or current.id in busy:
                raise UsageError(f"version {current.id[:12]} is in use and must keep its file.")
            if current.deleted_at is None:
                _unlink(folder, filename(current.file, "a version's file"))
            purged.append(ledger.mark_deleted(current.id, by))
    return purged


def orphans(ledger: Ledger, folder: Path) -> list[Path]:
    """What lies in `folder` and belongs to no version that has a file: left by a killed process, or put back."""
    kept = {version.file for version in ledger.versions() if version.deleted_at is None}
    try:
        return sorted(path for path in folder.iterdir() if path.name not in kept)
    except OSError as error:
        raise UsageError(f"the folder of models {folder} cannot be read ({error.strerror}).") from None


def _forgotten_by(
    version: Version, by_id: Mapping[str, Version], forgot: Mapping[int, frozenset[str]]
) -> frozenset[str]:
    samples: frozenset[str] = frozenset()
    step: Version | None = version
    seen: set[str] = set()
    while step is not None and step.id not in seen:
        seen.add(step.id)  # a ledger that was tampered with could have a ring
        samples |= forgot.get(step.fulfilment, frozenset()) if step.fulfilment is not None else frozenset()
        step = by_id.get(step.parent) if step.parent is not None else None
    return samples


def _in_use(fulfilments: Collection[Fulfilment]) -> set[str | None]:
    unfinished = [work for work in fulfilments if work.state in UNFINISHED]
    return {name for work in unfinished for name in (work.parent, work.version)}


def _retired_at(version: Version) -> datetime:
    return version.retired_at or version.made_at


def _unlink(folder: Path, name: str) -> None:
    """Remove a file for good: the entry is gone from the disk before the ledger says so."""
    path = folder / name
    try:
        facts = path.lstat()
        if path.is_symlink() or facts.st_nlink > 1:
            raise ExpungeError(
                f"{path} is a link or has a second name, so that its content would stay; delete all of them."
            )
        path.unlink()
    except FileNotFoundError:
        pass  # deleted before, perhaps by us
    except OSError as error:
        raise ExpungeError(f"{path} cannot be deleted ({error.strerror}); delete it, then purge again.") from None
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        raise UsageError(f"the folder of models {folder} does not exist.") from None
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
