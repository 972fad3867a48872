"""What happens to fulfilments and versions: begun, advanced, failed, rolled back; imported, deleted.

Each function works inside one transaction, so that a process that is killed leaves the state before it or after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from expunge.core.errors import ExpungeError, UsageError, unknown
from expunge.requests.ledger.chain import Row, Writing
from expunge.requests.ledger.intake import move
from expunge.requests.ledger.reading import (
    active_row,
    fulfilment_row,
    is_unfinished,
    member_rows,
    request_row,
    rows,
    version_row,
)
from expunge.requests.ledger.rules import UNFINISHED, check_brought, check_move
from expunge.requests.ledger.tables import fulfilments, members, versions
from expunge.requests.ledger.values import filename, hexhash, message, number, plain, stamp, text
from expunge.requests.records import STEPS, State, Step, Version


def begin(
    writing: Writing, wanted: Mapping[int, int], samples: list[str], seed: int, parent: str, plan: Mapping[str, Any]
) -> int:
    """A new fulfilment of requests that are all `received`; returns its id."""
    if not wanted:
        raise UsageError("a fulfilment needs at least one request.")
    for sample in samples:
        hexhash(sample, "the id of a sample")
    if not samples or len(set(samples)) != len(samples):
        raise UsageError("the samples of a fulfilment must be at least one, and each named once.")
    _refuse_unfinished(writing, "begun")
    _is_active(writing, parent)
    row: Row = {
        "id": writing.next_id(fulfilments),
        "state": "planned",
        "step": "planned",
        "samples": plain(samples, "the samples"),
        "seed": number(seed, "the seed"),
        "parent": parent,
        "version": None,
        "plan": plain(dict(plan), "the plan"),
        "facts": "{}",
        "audit": "{}",
        "case": None,
        "began_at": writing.at,
        "ended_at": None,
        "message": "",
    }
    writing.insert(fulfilments, [row])
    writing.log("planned", fulfilment=row["id"], to="planned", parent=parent)
    for request, count in sorted(wanted.items()):
        held = number(count, f"the number of samples of request {request}", least=1, most=len(samples))
        before = request_row(writing.connection, request)
        writing.insert(members, [{"fulfilment": row["id"], "request": request, "samples": held}])
        move(writing, before, "planned", fulfilment=row["id"], samples=held, message="")
        writing.log("planned", request=request, fulfilment=row["id"], **{"from": before["state"], "to": "planned"})
    return int(row["id"])


def advance(
    writing: Writing,
    fulfilment: int,
    step: Step,
    version: Version | None,
    facts: Mapping[str, Any] | None,
    audit: Mapping[str, Any] | None,
    case: str | None,
) -> None:
    """Store a finished step, once; see `Ledger.advance`."""
    if step not in STEPS:
        raise unknown("step", str(step)[:40], STEPS)
    row = fulfilment_row(writing.connection, fulfilment)
    what = f"fulfilment {row['id']}"
    if row["state"] not in UNFINISHED:
        if row["state"] == "fulfilled":  # the last step was stored, and this one with it
            return
        raise UsageError(
            f"{what} is {row['state']} and goes no further; begin a new one with requests that are received."
        )
    stored, asked = STEPS.index(row["step"]), STEPS.index(step)
    if asked > stored + 1:
        raise UsageError(f"{what} stands at `{row['step']}`; the next step is `{STEPS[stored + 1]}`, got `{step}`.")
    if row["state"] == "planned":
        row = _move_all(writing, row, "running", "started")
    if asked <= stored:
        return
    given = {"version": version, "facts": facts, "audit": audit, "case": case}
    check_brought(what, step, frozenset(name for name, value in given.items() if value is not None))
    values: dict[str, Any] = {"step": step}
    if version is not None:
        values["version"] = _keep(writing, row, version)
    if facts is not None:
        values["facts"] = plain(dict(facts), "the facts of the unlearning")
    if audit is not None:
        values["audit"] = plain(dict(audit), "the record of the audit")
    if case is not None:
        values["case"] = hexhash(case, "the case file's hash")
    if step == "done":
        _is_active(writing, row["parent"])
        _activate(writing, row["version"])
        _move_all(writing, row, "fulfilled", "fulfilled", ended_at=writing.at, **values)
    else:
        writing.change(fulfilments, row, **values)
        writing.log(
            step, fulfilment=row["id"], **{name: values[name] for name in ("version", "case") if name in values}
        )


def fail(writing: Writing, fulfilment: int, why: str, audit: Mapping[str, Any] | None = None) -> None:
    """Its requests fail with it; a version that it made stays known, so that its file can be deleted."""
    row = fulfilment_row(writing.connection, fulfilment)
    check_move(f"fulfilment {row['id']}", row["state"], "failed")
    said = message(why)
    if row["version"] is not None:
        version = version_row(writing.connection, row["version"])
        writing.change(versions, version, retired_at=writing.at)
    evidence = {} if audit is None else {"audit": plain(dict(audit), "the record of the audit")}
    _move_all(writing, row, "failed", "failed", said, ended_at=writing.at, **evidence)


def rollback(writing: Writing, fulfilment: int) -> str:
    """Back to the version before; returns its id."""
    row = fulfilment_row(writing.connection, fulfilment)
    what = f"fulfilment {row['id']}"
    check_move(what, row["state"], "rolled back")
    _refuse_unfinished(writing, "rolled back")
    active = active_row(writing.connection)
    if active is None or row["version"] != active["id"] or active["fulfilment"] != row["id"]:
        raise UsageError(f"{what} did not make the active version; roll back the later fulfilments first.")
    parent = version_row(writing.connection, row["parent"])
    if parent["deleted_at"] is not None:
        raise UsageError(f"{what} cannot be rolled back: the file of version {parent['id'][:12]} was deleted.")
    _activate(writing, parent["id"])
    _move_all(writing, row, "rolled back", "rolled back")
    return str(parent["id"])


def import_version(writing: Writing, version: Version) -> str:
    """A version that was made elsewhere becomes the active one; the same one again changes nothing."""
    row = _version_row(version, None)
    known = rows(writing.connection, sa.select(versions).where(versions.c.id == row["id"]))
    if known and known[0]["active"]:
        return str(row["id"])
    if known:
        raise UsageError(
            f"version {row['id'][:12]} was part of this lineage before; roll back to it, or import another."
        )
    _refuse_unfinished(writing, "imported")
    if row["parent"] is not None:
        version_row(writing.connection, hexhash(row["parent"], "a version's parent"))
    _insert_version(writing, row)
    _activate(writing, row["id"])
    writing.log("imported", version=row["id"], parent=row["parent"])
    return str(row["id"])


def mark_deleted(writing: Writing, name: str) -> None:
    """Its file is gone; a second time changes nothing."""
    row = version_row(writing.connection, name)
    if row["deleted_at"] is not None:
        return
    busy = rows(writing.connection, sa.select(fulfilments).where(is_unfinished()))
    if row["active"] or any(row["id"] in (work["parent"], work["version"]) for work in busy):
        raise UsageError(f"version {row['id'][:12]} is in use and must keep its file.")
    writing.change(versions, row, deleted_at=writing.at)
    writing.log("deleted", version=row["id"])


def _move_all(writing: Writing, row: Row, state: State, kind: str, said: str = "", **values: Any) -> Row:
    """A fulfilment and its requests change state together; each has its event."""
    check_move(f"fulfilment {row['id']}", row["state"], state)
    moved = writing.change(fulfilments, row, state=state, message=said, **values)
    facts = {name: moved[name] for name in ("version", "case") if state == "fulfilled"}
    writing.log(kind, fulfilment=row["id"], **{"from": row["state"], "to": state}, **facts)
    for request in member_rows(writing.connection, row["id"]):
        move(writing, request, state, message=said)
        writing.log(kind, request=request["id"], fulfilment=row["id"], **{"from": request["state"], "to": state})
    return moved


def _refuse_unfinished(writing: Writing, what: str) -> None:
    busy = rows(writing.connection, sa.select(fulfilments).where(is_unfinished()).limit(1))
    if busy:
        raise ExpungeError(
            f"fulfilment {busy[0]['id']} is not finished; until it is done or failed, nothing can be {what}."
        )


def _is_active(writing: Writing, name: str) -> None:
    active = active_row(writing.connection)
    if active is None:
        raise UsageError("there is no active version yet; import the model first.")
    if active["id"] != name:
        raise ExpungeError(f"version {active['id'][:12]} is active; a fulfilment starts from it and from no other.")


def _keep(writing: Writing, row: Row, version: Version) -> str:
    """Store the version that a fulfilment made. The same weights may come twice: after a failure or a rollback."""
    made = _version_row(version, row["id"])
    if made["parent"] != row["parent"]:
        raise UsageError(f"the version of fulfilment {row['id']} must have its parent {row['parent'][:12]}.")
    known = rows(writing.connection, sa.select(versions).where(versions.c.id == made["id"]))
    if not known:
        _insert_version(writing, made)
    elif known[0]["active"] or known[0]["parent"] != made["parent"]:
        raise ExpungeError(
            f"fulfilment {row['id']} made the weights of version {made['id'][:12]} again: nothing changed."
        )
    else:
        writing.change(versions, known[0], **{name: value for name, value in made.items() if name != "id"})
    return str(made["id"])


def _insert_version(writing: Writing, row: Row) -> None:
    if rows(writing.connection, sa.select(versions).where(versions.c.file == row["file"])):
        raise UsageError(f"the file {row['file']} belongs to another version; name the file after its own hash.")
    writing.insert(versions, [row])


def _activate(writing: Writing, name: str) -> None:
    """The one active version; its predecessor retires. The caller logs it."""
    before = active_row(writing.connection)
    if before is not None:  # first, since two are never active
        writing.change(versions, before, active=0, retired_at=writing.at)
    writing.change(versions, version_row(writing.connection, name), active=1, retired_at=None)


def _version_row(version: Version, fulfilment: int | None) -> Row:
    """Checked; whether it is active, retired or deleted is for the ledger to say."""
    return {
        "id": hexhash(version.id, "a version's id"),
        "parent": version.parent,
        "made_at": stamp(version.made_at),
        "method": text(version.method, "a version's method"),
        "options": plain(dict(version.options), "a version's options"),
        "seed": number(version.seed, "a version's seed"),
        "data": text(version.data, "a version's data hash"),
        "knows": number(version.knows, "the number of samples that a version knows"),
        "file": filename(version.file, "a version's file"),
        "fulfilment": fulfilment,
        "active": 0,
        "retired_at": None,
        "deleted_at": None,
    }
