"""What happens to single requests: received, rejected, received again. Each function works inside one transaction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa

from expunge.core.errors import UsageError, unknown
from expunge.requests.ledger.chain import Row, Writing
from expunge.requests.ledger.reading import chunks, request_row, rows
from expunge.requests.ledger.rules import OPEN, check_move
from expunge.requests.ledger.tables import requests
from expunge.requests.ledger.values import REASON, hexhash, message, text
from expunge.requests.records import State

_FIELDS = ("subject", "reason", "ticket", "batch")


def wish(row: Mapping[str, Any], what: str) -> Row:
    """The checked fields of a request that is to be added. what: "request" or "row 3", for the sentence."""
    if extra := [str(name) for name in row if name not in _FIELDS]:
        raise unknown(f"field of a {what}", extra[0][:40], _FIELDS)
    ticket = row.get("ticket")
    return {
        "subject": hexhash(row.get("subject"), f"the subject of {what}"),
        "reason": text(row.get("reason", ""), f"the reason of {what}", most=REASON, empty=True),
        "ticket": None if ticket is None else text(ticket, f"the ticket of {what}"),
        "batch": text(row.get("batch", ""), f"the batch of {what}", empty=True),
    }


def receive(writing: Writing, wishes: Iterable[Row]) -> list[tuple[Row, bool]]:
    """Each wish's request, and whether it is new; `records.Request` says which wishes are the same request."""
    listed = list(wishes)
    by_ticket = _found(writing, requests.c.ticket, [wish["ticket"] for wish in listed if wish["ticket"] is not None])
    open_ones = _found(writing, requests.c.subject, [wish["subject"] for wish in listed], requests.c.state.in_(OPEN))
    number = writing.next_id(requests)
    answer: list[tuple[Row, bool]] = []
    for wish in listed:
        same = open_ones.get(wish["subject"]) if wish["ticket"] is None else by_ticket.get(wish["ticket"])
        if same is not None:
            if same["subject"] != wish["subject"]:
                raise UsageError(
                    f"ticket {wish['ticket']!r} is request {same['id']} of another subject already; "
                    "give each request a ticket of its own."
                )
            answer.append((same, False))
            continue
        new = _new(writing, number, wish)
        number += 1
        answer.append((new, True))
        open_ones.setdefault(new["subject"], new)
        if new["ticket"] is not None:
            by_ticket[new["ticket"]] = new
    fresh = [row for row, new in answer if new]
    writing.insert(requests, fresh, log=lambda row: writing.log("received", request=row["id"], to="received"))
    return answer


def move(writing: Writing, row: Row, state: State, **values: Any) -> Row:
    """Change a request's state by the rules; the caller logs it."""
    check_move(f"request {row['id']}", row["state"], state)
    return writing.change(requests, row, state=state, changed_at=writing.at, **values)


def reject(writing: Writing, request: int, why: str) -> Row:
    """Reject a request with a reason; returns its row."""
    row = request_row(writing.connection, request)
    rejected = move(writing, row, "rejected", message=message(why))
    writing.log("rejected", request=row["id"], **{"from": row["state"], "to": "rejected"})
    return rejected


def retry(writing: Writing, request: int) -> Row:
    """Put a failed request back to "received"; returns its row."""
    row = request_row(writing.connection, request)
    check_move(f"request {row['id']}", row["state"], "received")
    if row["ticket"] is None and (
        other := _found(writing, requests.c.subject, [row["subject"]], requests.c.state.in_(OPEN))
    ):
        raise UsageError(
            f"request {row['id']} is not needed again: request {other[row['subject']]['id']} is the same and open."
        )
    again = move(writing, row, "received", fulfilment=None, samples=None, message="")
    writing.log("retried", request=row["id"], fulfilment=row["fulfilment"], **{"from": row["state"], "to": "received"})
    return again


def _new(writing: Writing, number: int, wish: Row) -> Row:
    return {
        "id": number,
        **wish,
        "state": "received",
        "received_at": writing.at,
        "by": writing.by,
        "changed_at": writing.at,
        "fulfilment": None,
        "samples": None,
        "message": "",
    }


def _found(
    writing: Writing, column: sa.Column[Any], values: list[Any], *conditions: sa.ColumnElement[bool]
) -> dict[Any, Row]:
    """Stored requests by the value of `column`, the oldest of each."""
    found: dict[Any, Row] = {}
    for part in chunks(dict.fromkeys(values)):
        query = sa.select(requests).where(column.in_(part), *conditions).order_by(requests.c.id.desc())
        found |= {row[column.name]: row for row in rows(writing.connection, query)}
    return found
