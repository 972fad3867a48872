"""The ledger of a workspace: requests, fulfilments, versions, and the log of everything that happened to them.

    with Ledger.open("sqlite:///ledger.sqlite") as ledger:
        request, new = ledger.add(subject, reason="GDPR Art. 17", by="ada")

Every method is one transaction and writes its events in it. A method that is called again after its process was killed
does what was not done, and nothing twice. Wrong input is a `UsageError`, and nothing is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

import sqlalchemy as sa

from expunge.core.errors import ExpungeError, UsageError, unknown
from expunge.requests.ledger import chain, intake, progress, reading
from expunge.requests.ledger.chain import Writing
from expunge.requests.ledger.claim import FileClaim, ServerClaim
from expunge.requests.ledger.database import Database
from expunge.requests.ledger.tables import events, fulfilments, requests, versions
from expunge.requests.ledger.values import hexhash, known_id, number, stamp, text
from expunge.requests.records import STATES, Event, Fulfilment, Request, State, Step, Version


def _now() -> datetime:
    return datetime.now(UTC)


class Ledger:
    """Made by `Ledger.open`. Threads may share one; `by` is always who does it, for the log."""

    def __init__(self, database: Database, clock: Callable[[], datetime] = _now) -> None:
        self._database = database
        self._clock = clock
        self._claim: FileClaim | ServerClaim | None = None

    @classmethod
    def open(cls, url: str, clock: Callable[[], datetime] = _now) -> Ledger:
        """The ledger at `url`, made or brought up to date if need be. clock: the time in UTC that is written down.

        url: sqlite:///PATH (a path as it is, nothing to escape; four slashes when absolute), or
        postgresql://USER:PASSWORD@HOST/DATABASE. Raises `UsageError` or `DataError` for other URLs, for a file that is
        no ledger or a newer one's; `ExpungeError` if a server does not answer.
        """
        return cls(Database(url), clock)

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- requests --

    def add(
        self, subject: str, *, reason: str = "", ticket: str | None = None, batch: str = "", by: str
    ) -> tuple[Request, bool]:
        """Receive a request; also says whether it is new. `records.Request` says which ones are the same."""
        wish = intake.wish({"subject": subject, "reason": reason, "ticket": ticket, "batch": batch}, "request")
        return self._receive([wish], by)[0]

    def add_many(self, rows: Iterable[Mapping[str, Any]], by: str) -> list[tuple[Request, bool]]:
        """`add` for every row (keys: subject, and reason, ticket, batch if they are known), all or none of them."""
        return self._receive([intake.wish(row, f"row {place}") for place, row in enumerate(rows, 1)], by)

    def request(self, request_id: int) -> Request:
        with self._database.reading() as connection:
            return reading.read(reading.to_request, reading.request_row(connection, request_id))

    def requests(
        self, *states: State, batch: str | None = None, limit: int | None = None, after: int = 0
    ) -> list[Request]:
        """In any of `states` (none: all), of one batch if it is named, with ids above `after`; oldest first."""
        for state in states:
            if state not in STATES:
                raise unknown("state", str(state)[:40], STATES)
        query = sa.select(requests).where(requests.c.id > number(after, "after")).order_by(requests.c.id)
        if states:
            query = query.where(requests.c.state.in_(states))
        if batch is not None:
            query = query.where(requests.c.batch == text(batch, "a batch", empty=True))
        with self._database.reading() as connection:
            return [reading.read(reading.to_request, row) for row in reading.rows(connection, _limited(query, limit))]

    def counts(self) -> dict[State, int]:
        """Number of requests in every state, those without one included."""
        query = sa.select(requests.c.state, sa.func.count()).group_by(requests.c.state)
        with self._database.reading() as connection:
            found = {state: count for state, count in connection.execute(query)}
        return {state: found.get(state, 0) for state in STATES}

    def reject(self, request_id: int, message: str, by: str) -> Request:
        """A request that cannot be fulfilled, and why; for good."""
        with self._writing(by) as writing:
            return reading.to_request(intake.reject(writing, request_id, message))

    def retry(self, request_id: int, by: str) -> Request:
        """Receive a failed or rolled back request again."""
        with self._writing(by) as writing:
            return reading.to_request(intake.retry(writing, request_id))

    # -- fulfilments --

    def begin(
        self,
        requests: Mapping[int, int],
        *,
        samples: Iterable[str],
        seed: int,
        parent: str,
        plan: Mapping[str, Any],
        by: str,
    ) -> Fulfilment:
        """Plan to fulfil requests together. Refuses requests that are not `received`, and a second unfinished one.

        requests: id -> number of its samples, >= 1. samples: hashes of them all. parent: id of the active version.
        """
        with self._writing(by) as writing:
            made = progress.begin(writing, requests, list(samples), seed, parent, plan)
            return self._fulfilment(writing.connection, made)

    def advance(
        self,
        fulfilment_id: int,
        step: Step,
        *,
        by: str,
        version: Version | None = None,
        facts: Mapping[str, Any] | None = None,
        audit: Mapping[str, Any] | None = None,
        case: str | None = None,
    ) -> Fulfilment:
        """Store a finished step with what belongs to it; a step that is stored already is left as it is.

        "planned": nothing, only that work began (planned -> running). "unlearned": version, and facts. "audited":
        audit. "recorded": case, the hash of the case file. "done": the version becomes the active one, the requests
        fulfilled.
        """
        with self._writing(by) as writing:
            progress.advance(writing, fulfilment_id, step, version, facts, audit, case)
            return self._fulfilment(writing.connection, fulfilment_id)

    def fail(self, fulfilment_id: int, message: str, by: str, audit: Mapping[str, Any] | None = None) -> Fulfilment:
        """It and its requests are failed, with the reason; `retry` receives a request again.

        audit: the record of an audit that was not accepted; the evidence is kept.
        """
        with self._writing(by) as writing:
            progress.fail(writing, fulfilment_id, message, audit)
            return self._fulfilment(writing.connection, fulfilment_id)

    def unfinished(self) -> list[Fulfilment]:
        """Planned or running; what a killed process left."""
        with self._database.reading() as connection:
            return reading.fulfilment_list(connection, reading.is_unfinished())

    def fulfilment(self, fulfilment_id: int) -> Fulfilment:
        with self._database.reading() as connection:
            return self._fulfilment(connection, fulfilment_id)

    def fulfilments(self) -> list[Fulfilment]:
        """All of them, oldest first."""
        with self._database.reading() as connection:
            return reading.fulfilment_list(connection)

    def rollback(self, fulfilment_id: int, by: str) -> Version:
        """Make the version before active again; only for the fulfilment that made the active one."""
        with self._writing(by) as writing:
            return self._version(writing.connection, progress.rollback(writing, fulfilment_id))

    # -- versions --

    def import_version(self, version: Version, by: str) -> Version:
        """Make a model from elsewhere (the first one, or one that was trained anew) the active version."""
        with self._writing(by) as writing:
            return self._version(writing.connection, progress.import_version(writing, version))

    def versions(self) -> list[Version]:
        """All that ever were, oldest first."""
        with self._database.reading() as connection:
            found = reading.rows(connection, sa.select(versions).order_by(versions.c.made_at, versions.c.id))
            return [reading.read(reading.to_version, row) for row in found]

    def version(self, name: str) -> Version:
        """By its id, or by a prefix of at least 6 digits that no other version has."""
        with self._database.reading() as connection:
            return self._version(connection, name)

    def active(self) -> Version:
        with self._database.reading() as connection:
            row = reading.active_row(connection)
        if row is None:
            raise UsageError("this ledger has no version yet; import the model first (`expunge init`).")
        return reading.read(reading.to_version, row)

    def mark_deleted(self, version_id: str, by: str) -> Version:
        """Say that a version's file is gone; refuses one that is in use."""
        with self._writing(by) as writing:
            progress.mark_deleted(writing, version_id)
            return self._version(writing.connection, version_id)

    def purged(self, fulfilments: Iterable[int], *, number: int, record: str, removed: int, kept: int, by: str) -> None:
        """Log that copies of the samples of these fulfilments were removed.

        number, record: number and hash of the signed record. removed, kept: how many things.
        """
        facts: dict[str, Any] = {
            "number": number,
            "record": hexhash(record, "a record"),
            "removed": removed,
            "kept": kept,
        }
        with self._writing(by) as writing:
            for one in fulfilments:
                writing.log("purged", fulfilment=self._fulfilment(writing.connection, one).id, **facts)

    # -- log --

    def events(self, after: int = 0, limit: int | None = None) -> list[Event]:
        """With ids above `after`, oldest first."""
        query = sa.select(events).where(events.c.id > number(after, "after")).order_by(events.c.id)
        with self._database.reading() as connection:
            return [reading.read(reading.to_event, row) for row in reading.rows(connection, _limited(query, limit))]

    def head(self) -> str:
        """Hash of the last event: what a case file signs, to bind the log to its past."""
        with self._database.reading() as connection:
            return chain.head(connection)

    def verify(self) -> list[str]:
        """A sentence about every break of the log, and about every row that contradicts it; none: all is intact."""
        with self._database.reading() as connection:
            return chain.check(connection)

    # -- one process at a time --

    @contextmanager
    def claim(self, timeout: float = 0) -> Iterator[None]:
        """While it lasts, no other process works on this workspace. timeout: seconds to wait for one that does.

        Reading and adding requests need no claim. Raises `ExpungeError` if another process holds it.
        """
        claim = FileClaim(self._database.path) if self._database.path is not None else ServerClaim(self._database)
        if self._claim is not None or not claim.take(timeout):
            raise ExpungeError(f"another process is working on the ledger {self._database.name}; wait for it to end.")
        self._claim = claim
        try:
            yield
        finally:
            self._claim = None
            claim.drop()

    @property
    def claimed(self) -> bool:
        """Whether this object holds the claim."""
        return self._claim is not None

    def _receive(self, wishes: list[chain.Row], by: str) -> list[tuple[Request, bool]]:
        with self._writing(by) as writing:
            return [(reading.to_request(row), new) for row, new in intake.receive(writing, wishes)]

    @contextmanager
    def _writing(self, by: str) -> Iterator[Writing]:
        who = text(by, "who does it (`by`)")
        if self._claim is not None:
            self._claim.check()
        with self._database.writing() as connection:
            writing = Writing(connection, who, stamp(self._clock()))
            yield writing
            writing.finish()

    def _fulfilment(self, connection: sa.Connection, fulfilment: int) -> Fulfilment:
        wanted = known_id(fulfilment, "a fulfilment's id")
        found = reading.fulfilment_list(connection, fulfilments.c.id == wanted)
        if not found:
            raise UsageError(f"there is no fulfilment {wanted} in this ledger.")
        return found[0]

    def _version(self, connection: sa.Connection, name: str) -> Version:
        return reading.read(reading.to_version, reading.version_row(connection, name))


def _limited(query: sa.Select[Any], limit: int | None) -> sa.Select[Any]:
    return query if limit is None else query.limit(number(limit, "limit"))
