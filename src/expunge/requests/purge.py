"""Purging: what is removed after requests were fulfilled, what is kept and why, and the signed record of both.

    plan    versions that still know forgotten samples, and entries of the cache that are copies of them
    begin   the plan is written down, so that a purge that was cut off is told by the next one
    remove  one after the other; what is in use is left and named
    record  signed, `cases/purge-000001.json`; its hash is in the ledger

Without `request`, `before` or `now`, versions go as the setting `retention` says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from expunge.core.entries import InUse, entries, remove
from expunge.core.errors import ExpungeError, UsageError
from expunge.core.options import build, to_dict
from expunge.core.version import __version__
from expunge.requests import copies
from expunge.requests.case.content import FORMAT
from expunge.requests.case.document import PURGE_KIND, save_case, sign_case
from expunge.requests.case.keys import load_signer
from expunge.requests.copies import VERSIONS, Purge, version_row
from expunge.requests.ledger import lineage
from expunge.requests.ledger.ledger import Ledger
from expunge.requests.ledger.lineage import Retention
from expunge.requests.records import Fulfilment, Version
from expunge.requests.settings import Layout

_EVIDENCE = "evidence that requests were fulfilled; they name samples and subjects by keyed hashes and hold none"


@dataclass(frozen=True)
class Purged:
    """What a purge did. record: the signed file, None where there was nothing to do. left: why something stayed."""

    versions: tuple[Version, ...]
    removed: tuple[Mapping[str, Any], ...]
    kept: tuple[Mapping[str, Any], ...]
    left: tuple[str, ...]
    record: Path | None


@dataclass(frozen=True)
class Wanted:
    """Which part of what could be purged is.

    Attributes:
        request: Only what still knows the samples of this fulfilled request, whatever `retention` says.
        before: Only what was made (of versions: what was retired) before, whatever `retention` says.
        now: Do not wait for the days of `retention`.
        keep: Kinds that are kept: `versions`, or kinds of the cache.
        reason: Why they are kept.
    """

    request: int | None = None
    before: datetime | None = None
    now: bool = False
    keep: Sequence[str] = ()
    reason: str = ""


def plan_purge(ledger: Ledger, layout: Layout, pepper: bytes, cache: Path, wanted: Wanted) -> Purge:
    """What `carry_out` would do; changes nothing.

    Raises:
        UsageError: If the request is not fulfilled, or something is kept without a reason.
    """
    copies.check_keep(wanted.keep, wanted.reason)
    done = _fulfilments(ledger, wanted.request)
    due = _versions(ledger, layout.retention, wanted, done)
    found = copies.find(layout.copies, pepper, [one.id for one in done], cache)
    chosen = [one for one in found if wanted.before is None or one.entry.written_at < wanted.before]
    kept = [one for one in chosen if one.entry.kind in wanted.keep]
    removed = tuple(one for one in chosen if one not in kept)
    rows = [
        *_kept_versions(ledger, layout, {version.id for version in due}, wanted),
        *({**one.row(), "why": wanted.reason.strip()} for one in kept),
        *({**one.row(), "why": "newer than the date of the purge"} for one in found if one not in chosen),
        *copies.outside(layout.settings.outside),
        {"what": "ledger and case files", "place": "workspace", "bytes": 0, "made_at": "", "why": _EVIDENCE},
    ]
    return Purge(tuple(one.id for one in done), tuple(due), removed, tuple(rows))


def carry_out(ledger: Ledger, layout: Layout, plan: Purge, cache: Path, by: str, say: Callable[[str], None]) -> Purged:
    """Remove what is planned, and sign what came of it. The caller holds the claim of the ledger.

    A call that was killed is followed by one that goes on: what it had removed is in the record of the next.
    """
    if not plan and not copies.interrupted(layout.copies):
        return Purged((), (), plan.kept, (), None)
    rows = copies.begin(layout.copies, plan.rows(layout.models))
    gone, left = [], []
    for version in plan.versions:
        try:
            gone += lineage.purge(ledger, layout.models, [version], by=by)
            say(f"version {version.id[:12]} deleted: it still knew what was to be forgotten.")
        except ExpungeError as problem:
            left.append(str(problem))
    for one in plan.copies:
        try:
            remove(one.entry, cache)
        except InUse as problem:
            left.append(str(problem))
    there = {version.id[:12] for version in ledger.versions() if version.deleted_at is None}
    cached = {entry.name for entry in entries(cache)}
    stays = [row for row in rows if _still(row["place"], there, cached)]
    removed = [row for row in rows if row not in stays]
    kept = [*({**row, "why": "could not be removed"} for row in stays), *plan.kept]
    record = _sign(ledger, layout, plan, removed, kept, by)
    copies.end(layout.copies)
    return Purged(tuple(gone), tuple(removed), tuple(kept), tuple(left), record)


def records_of(ledger: Ledger, layout: Layout, fulfilment: int | None = None) -> list[tuple[Path, str]]:
    """(file, hash that the ledger holds) of every purge record, or of those about one fulfilment; oldest first."""
    found: dict[int, str] = {}
    for event in ledger.events():
        if event.kind == "purged" and fulfilment in (None, event.fulfilment):
            found[int(event.detail["number"])] = str(event.detail["record"])
    return [(_path(layout, number), digest) for number, digest in sorted(found.items())]


def _sign(
    ledger: Ledger,
    layout: Layout,
    plan: Purge,
    removed: Sequence[Mapping[str, Any]],
    kept: Sequence[Mapping[str, Any]],
    by: str,
) -> Path:
    done = [ledger.fulfilment(number) for number in plan.fulfilments]
    number = 1 + max((int(path.stem.rpartition("-")[2]) for path, _ in records_of(ledger, layout)), default=0)
    content = {
        "format": FORMAT,
        "kind": PURGE_KIND,
        "number": number,
        "made_at": datetime.now(UTC).isoformat(timespec="microseconds"),
        "software": {"expunge": __version__},
        "requests": sorted(request for one in done for request in one.requests),
        "fulfilments": [{"id": one.id, "case": one.case} for one in done],
        "removed": list(removed),
        "kept": list(kept),
        "ledger": ledger.head(),
    }
    document = sign_case(content, load_signer(layout.keys))
    path = save_case(document, _path(layout, number))
    ledger.purged(plan.fulfilments, number=number, record=document["hash"], removed=len(removed), kept=len(kept), by=by)
    return path


def _path(layout: Layout, number: int) -> Path:
    return layout.cases / f"purge-{number:06d}.json"


def _fulfilments(ledger: Ledger, request: int | None) -> list[Fulfilment]:
    if request is None:
        return [one for one in ledger.fulfilments() if one.state == "fulfilled"]
    wanted = ledger.request(request)
    if wanted.state != "fulfilled" or wanted.fulfilment is None:
        raise UsageError(f"request {request} is {wanted.state}; only what was forgotten for a fulfilled one is purged.")
    return [ledger.fulfilment(wanted.fulfilment)]


def _versions(ledger: Ledger, retention: Retention, wanted: Wanted, done: Sequence[Fulfilment]) -> list[Version]:
    if VERSIONS in wanted.keep:
        return []
    if wanted.now or wanted.request is not None or wanted.before is not None:
        retention = build(Retention, {**to_dict(retention), "keep_days": 0.0, "keep_versions": 0})
    due = lineage.due(ledger, retention, datetime.now(UTC))
    if wanted.before is not None:
        due = [version for version in due if (version.retired_at or version.made_at) < wanted.before]
    if wanted.request is not None:
        known = lineage.still_known(ledger.versions(), ledger.fulfilments())
        due = [version for version in due if known[version.id] & set(done[0].samples)]
    return due


def _kept_versions(ledger: Ledger, layout: Layout, due: set[str], wanted: Wanted) -> list[dict[str, Any]]:
    versions = ledger.versions()
    known = lineage.still_known(versions, ledger.fulfilments())
    rows = []
    for version in versions:
        if version.deleted_at is None and not version.active and version.id not in due and known[version.id]:
            end = (version.retired_at or version.made_at) + timedelta(days=layout.retention.keep_days)
            why = wanted.reason.strip() if VERSIONS in wanted.keep else f"kept for a rollback until {end:%Y-%m-%d}"
            rows.append(version_row(version, layout.models, why))
    return rows


def _still(place: str, versions: set[str], cached: set[str]) -> bool:
    kind, _, name = place.partition("/")
    return name in (versions if kind == "models" else cached)
