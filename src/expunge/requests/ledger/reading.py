"""From stored rows to the values of `records`, and the queries that more than one part asks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, TypeVar

import sqlalchemy as sa

from expunge.core.errors import DataError, UsageError
from expunge.requests.ledger.chain import Row
from expunge.requests.ledger.rules import UNFINISHED
from expunge.requests.ledger.tables import fulfilments, members, requests, versions
from expunge.requests.ledger.values import known_id
from expunge.requests.records import Event, Fulfilment, Request, Version

T = TypeVar("T")
_SHORTEST = 6  # hex digits of a prefix of a version's id


def request_row(connection: sa.Connection, request: int) -> Row:
    """The row of a request; raises `UsageError` for an unknown id."""
    return _named(connection, requests, known_id(request, "a request's id"), "request")


def fulfilment_row(connection: sa.Connection, fulfilment: int) -> Row:
    """The row of a fulfilment; raises `UsageError` for an unknown id."""
    return _named(connection, fulfilments, known_id(fulfilment, "a fulfilment's id"), "fulfilment")


def version_row(connection: sa.Connection, name: str) -> Row:
    """By id, or by a prefix that only one version has."""
    if not isinstance(name, str) or len(name) < _SHORTEST or set(name) - set("0123456789abcdef"):
        raise UsageError(f"a version is named by at least {_SHORTEST} of the hex digits of its hash.")
    found = rows(connection, sa.select(versions).where(versions.c.id.startswith(name)).limit(2))
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"more than one version begins with {name[:64]}; give more digits.")
    raise UsageError(f"there is no version {name[:64]}.")


def active_row(connection: sa.Connection) -> Row | None:
    """The row of the active version, or None."""
    return next(iter(rows(connection, sa.select(versions).where(versions.c.active == 1))), None)


def member_rows(connection: sa.Connection, fulfilment: int) -> list[Row]:
    """The requests of a fulfilment, as they are now."""
    joined = sa.select(requests).join(members, members.c.request == requests.c.id)
    return rows(connection, joined.where(members.c.fulfilment == fulfilment).order_by(requests.c.id))


def fulfilment_list(connection: sa.Connection, *conditions: sa.ColumnElement[bool]) -> list[Fulfilment]:
    """Oldest first, each with its requests."""
    found = rows(connection, sa.select(fulfilments).where(*conditions).order_by(fulfilments.c.id))
    wanted = sa.select(members.c.fulfilment, members.c.request).order_by(members.c.request)
    if conditions:
        wanted = wanted.where(members.c.fulfilment.in_(sa.select(fulfilments.c.id).where(*conditions)))
    belonging: dict[int, list[int]] = {row["id"]: [] for row in found}
    for fulfilment, request in connection.execute(wanted):
        belonging[fulfilment].append(request)
    return [read(to_fulfilment, {**row, "requests": belonging[row["id"]]}) for row in found]


def is_unfinished() -> sa.ColumnElement[bool]:
    """Condition for fulfilments that are not finished."""
    return fulfilments.c.state.in_(UNFINISHED)


def rows(connection: sa.Connection, query: sa.Select[Any]) -> list[Row]:
    """All rows of a query as dicts."""
    return [dict(row) for row in connection.execute(query).mappings()]


def read(make: Callable[[Mapping[str, Any]], T], row: Mapping[str, Any]) -> T:
    """`make(row)`; a row that somebody wrote past the ledger is said to be damaged."""
    try:
        return make(row)
    except (TypeError, ValueError, RecursionError):
        raise DataError(
            f"entry {row['id']} of the ledger is damaged; `expunge requests verify` says what is wrong."
        ) from None


def to_request(row: Mapping[str, Any]) -> Request:
    """A request from its row."""
    return Request(**{**row, "received_at": _time(row["received_at"]), "changed_at": _time(row["changed_at"])})


def to_version(row: Mapping[str, Any]) -> Version:
    """A version from its row."""
    times = {name: _time_or_none(row[name]) for name in ("retired_at", "deleted_at")}
    made = {"made_at": _time(row["made_at"]), "options": _object(row["options"]), "active": bool(row["active"])}
    return Version(**{**row, **made, **times})


def to_fulfilment(row: Mapping[str, Any]) -> Fulfilment:
    """row: with `requests`, the ids."""
    parsed = {name: _object(row[name]) for name in ("plan", "facts", "audit")}
    lists = {"requests": tuple(row["requests"]), "samples": tuple(json.loads(row["samples"]))}
    times = {"began_at": _time(row["began_at"]), "ended_at": _time_or_none(row["ended_at"])}
    return Fulfilment(**{**row, **parsed, **lists, **times})


def to_event(row: Mapping[str, Any]) -> Event:
    """An event from its row."""
    return Event(**{**row, "at": _time(row["at"]), "detail": _object(row["detail"])})


def chunks(values: Iterable[T], size: int = 500) -> Iterable[list[T]]:
    """For lists of values in a query, which databases limit."""
    listed = list(values)
    return (listed[start : start + size] for start in range(0, len(listed), size))


def _named(connection: sa.Connection, table: sa.Table, key: int, what: str) -> Row:
    found = rows(connection, sa.select(table).where(table.c.id == key))
    if not found:
        raise UsageError(f"there is no {what} {key} in this ledger.")
    return found[0]


def _time(value: str) -> datetime:
    return datetime.fromisoformat(value)


def _time_or_none(value: str | None) -> datetime | None:
    return None if value is None else _time(value)


def _object(value: str) -> dict[str, Any]:
    parsed = json.loads(value)
    if not isinstance(parsed, dict):
        raise TypeError("not an object")
    return parsed
