"""The register of a workspace: what the ledger, the settings and the case files say, without models and data.

with Register.open(Path("workspace")) as register:
    request, new = register.add("4711", reason="GDPR Art. 17")
    print(register.status())

Taking in requests and looking at them needs neither torch nor the data, so it answers at once.
"""

from __future__ import annotations

import getpass
import socket
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from expunge.core.display import counted
from expunge.core.errors import UsageError
from expunge.core.options import build
from expunge.evidence.explain import verdict_label
from expunge.requests.case.keys import load_pepper, subject_hash
from expunge.requests.copies import Purge
from expunge.requests.ledger.ledger import Ledger
from expunge.requests.purge import Purged, Wanted, carry_out, plan_purge
from expunge.requests.records import Fulfilment, Request, State, Version
from expunge.requests.settings import Layout
from expunge.requests.tickets import make_wish, parse_tickets, read_tickets
from expunge.training.advice import Advice, Drift, advise

Say = Callable[[str], None]


class Register:
    """One open workspace. by: who works, for the log; default: user@host."""

    def __init__(self, workspace: Layout, ledger: Ledger, by: str | None = None) -> None:
        self.workspace, self.ledger = workspace, ledger
        self.by = by or f"{getpass.getuser()}@{socket.gethostname()}"
        self._pepper = load_pepper(workspace.keys)

    @classmethod
    def open(cls, folder: Path, *, by: str | None = None) -> Self:
        """Raises `UsageError` where there is no workspace, or where its ledger or keys cannot be read."""
        workspace = Layout.open(folder)
        return cls(workspace, Ledger.open(workspace.ledger_url), by)

    def close(self) -> None:
        self.ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # taking in

    def add(
        self, subject: str, *, reason: str = "", ticket: str | None = None, batch: str = ""
    ) -> tuple[Request, bool]:
        """(the request, whether it is new). The subject is kept as a keyed hash only."""
        wish = make_wish(subject=subject, reason=reason, ticket=ticket, batch=batch)
        return self.ledger.add(
            subject_hash(self._pepper, wish.subject),
            reason=wish.reason, ticket=wish.ticket, batch=wish.batch, by=self.by,
        )  # fmt: skip

    def import_tickets(self, source: Path | bytes) -> list[tuple[Request, bool]]:
        """A CSV file of requests, or its content: all of them or none."""
        wishes = parse_tickets(source, "the file") if isinstance(source, bytes) else read_tickets(source)
        rows = [
            {"subject": subject_hash(self._pepper, wish.subject), "reason": wish.reason, "ticket": wish.ticket,
             "batch": wish.batch}
            for wish in wishes
        ]  # fmt: skip
        return self.ledger.add_many(rows, by=self.by)

    # undoing and cleaning up

    def retry(self, number: int) -> Request:
        """Take a failed or rolled-back request in again."""
        return self.ledger.retry(number, by=self.by)

    def rollback(self, number: int) -> Version:
        """Undo the fulfilment of a request, the last one only; all requests of its batch are rolled back."""
        request = self.ledger.request(number)
        if request.fulfilment is None or request.state != "fulfilled":
            raise UsageError(f"request {number} is {request.state}; only what is fulfilled can be rolled back.")
        if self.ledger.fulfilment(request.fulfilment).plan.get("method") == "sisa":
            raise UsageError(f"request {number} was fulfilled in shards, which forget for good; it cannot be undone.")
        with self.ledger.claim():
            return self.ledger.rollback(request.fulfilment, by=self.by)

    def plan_purge(self, wanted: Wanted | None = None, *, cache: Path | None = None) -> Purge:
        """What `purge` would remove, and what it would keep and why; changes nothing. cache: default the user's."""
        from expunge.data.cache import cache_root

        root = cache_root() if cache is None else cache
        return plan_purge(self.ledger, self.workspace, self._pepper, root, wanted or Wanted())

    def purge(self, wanted: Wanted | None = None, *, cache: Path | None = None, say: Say = lambda text: None) -> Purged:
        """Delete versions that still know what was to be forgotten, and copies of those samples in the cache.

        What was removed and what is kept is signed (`Purged.record`). A call that was cut off can be made again.
        """
        from expunge.data.cache import cache_root

        root = cache_root() if cache is None else cache
        with self.ledger.claim():
            plan = self.plan_purge(wanted, cache=root)
            return carry_out(self.ledger, self.workspace, plan, root, self.by, say)

    # looking

    def advise(self) -> Advice | None:
        """Whether to train again, from the drift that the last fulfilment measured; None before the first one."""
        active = self.ledger.active()
        if active.fulfilment is None:
            return None
        drift = self.ledger.fulfilment(active.fulfilment).audit.get("drift")
        return advise(build(Drift, drift), self.workspace.limits) if drift else None

    def status(self, last: int = 20) -> dict[str, Any]:
        """Counts, the newest requests, the version in force and the advice, JSON-ready."""
        advice = self.advise()
        return {
            "counts": {state: count for state, count in self.ledger.counts().items() if count},
            "requests": [_plain(one) for one in self.ledger.requests()[-last:]],
            "active": _plain(self.ledger.active()),
            "advice": {
                "word": advice.word if advice else "go on",
                "reasons": list(advice.reasons) if advice else ["nothing was unlearned yet."],
                "accuracy_left": advice.left if advice else 1.0,
            },
        }

    def listed(self, *states: State, batch: str | None = None, after: int = 0) -> list[dict[str, Any]]:
        """Requests in any of `states` (none: all), of one batch if it is named, oldest first, JSON-ready."""
        return [_plain(one) for one in self.ledger.requests(*states, batch=batch, after=after)]

    def show(self, number: int) -> dict[str, Any]:
        """One request with its fulfilment and its events, JSON-ready."""
        request = self.ledger.request(number)
        work = self.ledger.fulfilment(request.fulfilment) if request.fulfilment is not None else None
        events = [
            _plain(event)
            for event in self.ledger.events()
            if event.request == number or (work is not None and event.fulfilment == work.id)
        ]
        summary: dict[str, Any] = {
            "request": number, "state": request.state, "subject (hash)": request.subject, "reason": request.reason,
            "ticket": request.ticket, "batch": request.batch, "received": request.received_at.isoformat(),
            "samples": request.samples, "message": request.message,
        }  # fmt: skip
        if work is not None:
            summary |= {
                "fulfilment": work.id, "method": work.plan.get("method"), "exact": work.plan.get("exact"),
                "verdict": verdict_label(work.audit) or None, "model before": work.parent, "model after": work.version,
                "case file": str(self.case_path(number)) if work.case else None,
            }  # fmt: skip
        shown = {key: value for key, value in summary.items() if value not in (None, "")}
        return {"summary": shown, "request": _plain(request), "fulfilment": _plain(work) if work else None,
                "events": events}  # fmt: skip

    def versions(self) -> list[dict[str, Any]]:
        """The lineage, oldest first, JSON-ready, each with its `state`: in force, kept or deleted."""
        return [
            {**_plain(one), "state": "in force" if one.active else "deleted" if one.deleted_at else "kept"}
            for one in self.ledger.versions()
        ]

    def sentence(self, one: Fulfilment) -> str:
        """What came of a fulfilment, in one line."""
        asked, meant = counted(len(one.requests), "request"), counted(len(one.samples), "sample")
        what = f"fulfilment {one.id} ({asked}, {meant})"
        if one.state != "fulfilled":
            return f"{what} {one.state}: {one.message}"
        return f"{what}: {verdict_label(one.audit)}, by {one.plan['method']}; model in force: {str(one.version)[:12]}"

    # proving

    def case_path(self, number: int) -> Path:
        """The case file of a fulfilled request. Raises `UsageError` if there is none."""
        request = self.ledger.request(number)
        if request.fulfilment is None or self.ledger.fulfilment(request.fulfilment).case is None:
            raise UsageError(f"request {number} is {request.state}; there is a case file once it is fulfilled.")
        return self.workspace.cases / f"{request.fulfilment:06d}.json"


def _plain(record: Any) -> dict[str, Any]:
    """A record as JSON-ready values; times in ISO 8601."""
    values = asdict(record)
    return {key: value.isoformat() if isinstance(value, datetime) else value for key, value in values.items()}
