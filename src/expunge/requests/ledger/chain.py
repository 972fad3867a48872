"""The log that only grows: events linked by hashes, each with the digests of the rows that it changed.

    hash = sha256(previous + canonical JSON of {id, at, by, kind, request, fulfilment, detail}), GENESIS before event 1
    detail["rows"] = {"requests/12": sha256 of the canonical JSON of that row as it stands after the event, ..}

So `check` finds every changed, removed, added or reordered event, and every row that was changed past the log. Whoever
can write the whole database can also write a whole new chain: what binds the log to its past is the hash of its last
event, which every signed case file holds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import sqlalchemy as sa

from expunge.requests.ledger import tables
from expunge.requests.ledger.values import canonical

GENESIS = "0" * 64
_HASHED = ("id", "at", "by", "kind", "request", "fulfilment", "detail")

Row = dict[str, Any]


class Writing:
    """One writing transaction. Rows change through it, and each change must be in an event before it ends."""

    def __init__(self, connection: sa.Connection, by: str, at: str) -> None:
        self.connection = connection
        self.by = by
        self.at = at
        last = connection.execute(_last()).first()
        self._last: tuple[int, str] = (last.id, last.hash) if last is not None else (0, GENESIS)
        self._rows: dict[str, str] = {}  # changed and not in an event yet
        self._events: list[Row] = []

    def next_id(self, table: sa.Table) -> int:
        """Ids are consecutive; writers wait for each other, so nobody else takes this one."""
        return int(self.connection.execute(sa.select(sa.func.coalesce(sa.func.max(table.c.id), 0))).scalar_one()) + 1

    def insert(self, table: sa.Table, rows: list[Row], log: Callable[[Row], None] | None = None) -> None:
        """New rows, every column given. log: called after each, to put it into an event of its own."""
        if rows:
            self.connection.execute(sa.insert(table), rows)
        for row in rows:
            self._rows[_name(table, row)] = digest(row)
            if log is not None:
                log(row)

    def change(self, table: sa.Table, row: Mapping[str, Any], **values: Any) -> Row:
        """Overwrite columns of a row that was read in this transaction; returns the row as it stands now."""
        same = [column == row[column.name] for column in table.primary_key]
        self.connection.execute(sa.update(table).where(*same).values(values))
        changed = {**row, **values}
        self._rows[_name(table, changed)] = digest(changed)
        return changed

    def log(self, kind: str, *, request: int | None = None, fulfilment: int | None = None, **detail: Any) -> None:
        """One event about all rows that changed since the last one."""
        number, previous = self._last[0] + 1, self._last[1]
        event: Row = {
            "id": number,
            "at": self.at,
            "by": self.by,
            "kind": kind,
            "request": request,
            "fulfilment": fulfilment,
            "detail": canonical({**detail, "rows": self._rows}),
        }
        event |= {
            "previous": previous,
            "hash": event_hash(previous, {**event, "detail": {**detail, "rows": self._rows}}),
        }
        self._events.append(event)
        self._rows = {}
        self._last = (number, event["hash"])

    def finish(self) -> None:
        """Store the events; the transaction is committed after it."""
        if self._rows:
            raise RuntimeError(f"rows changed without an event: {', '.join(sorted(self._rows))}.")
        if self._events:
            self.connection.execute(sa.insert(tables.events), self._events)


def event_hash(previous: str, fields: Mapping[str, Any]) -> str:
    """Hash of an event with these fields (detail as a mapping; what else is in `fields` is left out)."""
    return hashlib.sha256((previous + canonical({name: fields[name] for name in _HASHED})).encode()).hexdigest()


def digest(row: Mapping[Any, Any]) -> str:
    """Hash of a row as it is stored."""
    return hashlib.sha256(canonical(dict(row)).encode()).hexdigest()


def head(connection: sa.Connection) -> str:
    """Hash of the last event, or of the beginning of the chain."""
    last = connection.execute(_last()).first()
    return GENESIS if last is None else str(last.hash)


def check(connection: sa.Connection) -> list[str]:
    """A sentence about every break; none: the chain is whole and the tables are what it says."""
    broken: list[str] = []
    promised: dict[str, tuple[str, int]] = {}  # row -> its digest, and the event that changed it last
    number, previous = 0, GENESIS
    for event in connection.execute(sa.select(tables.events).order_by(tables.events.c.id)).mappings():
        if event["id"] != number + 1:
            missing = (
                f"event {number + 1} is"
                if event["id"] == number + 2
                else f"events {number + 1} to {event['id'] - 1} are"
            )
            broken.append(f"{missing} missing.")
        if event["previous"] != previous:
            broken.append(f"event {event['id']} does not follow from the one before it: removed, added or reordered.")
        rows = _rows_of(event)
        if rows is None:
            broken.append(f"event {event['id']} was changed after it was written.")
        for name, promise in (rows or {}).items():
            promised[name] = (promise, event["id"])
        number, previous = event["id"], event["hash"]
    return broken + list(_compare(connection, promised))


def _last() -> sa.Select[Any]:
    return sa.select(tables.events.c.id, tables.events.c.hash).order_by(tables.events.c.id.desc()).limit(1)


def _rows_of(event: Mapping[Any, Any]) -> Mapping[str, str] | None:
    """The digests in an event; None if it is not what its hash was made of."""
    try:
        detail = json.loads(event["detail"])
        if (
            canonical(detail) != event["detail"]
            or event_hash(event["previous"], {**event, "detail": detail}) != event["hash"]
        ):
            return None
        rows = detail["rows"]
    except (TypeError, ValueError, KeyError, RecursionError):
        return None
    return rows if isinstance(rows, dict) else None


def _compare(connection: sa.Connection, promised: dict[str, tuple[str, int]]) -> Iterator[str]:
    for table in _logged():
        for row in connection.execute(sa.select(table).order_by(*table.primary_key)).mappings():
            name = _name(table, row)
            promise, event = promised.pop(name, (None, 0))
            if promise is None:
                yield f"row {name} is in no event: it was added past the log."
            elif promise != digest(row):
                yield f"row {name} is not what event {event} left: it was changed past the log, or events are missing."
    for name, (_, event) in promised.items():
        yield f"row {name} of event {event} is missing."


def _logged() -> Iterable[sa.Table]:
    return [table for table in tables.metadata.sorted_tables if table is not tables.events]


def _name(table: sa.Table, row: Mapping[Any, Any]) -> str:
    return "/".join([table.name, *(str(row[column.name]) for column in table.primary_key)])
