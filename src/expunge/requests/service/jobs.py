"""Long work in one thread: one job at a time, with its progress, what it said, and what came of it.

A job that is cancelled, or dies with the process, leaves a fulfilment in the ledger that the next job goes on with.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from expunge.core.errors import Cancelled, ExpungeError
from expunge.core.run import Progress
from expunge.requests.desk import Desk

JobState = Literal["running", "cancelling", "done", "failed", "cancelled"]
Outcome = dict[str, Any]
Work = Callable[[Desk, "Job"], list[Outcome]]
_KEPT = 50  # ended jobs that can still be asked for
_LINES = 500  # newest lines of a job
log = logging.getLogger("expunge.service")


@dataclass
class Job:
    """One piece of long work. Its worker writes, others read `view()`."""

    kind: str
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    state: JobState = "running"
    began_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    ended_at: datetime | None = None
    progress: Progress | None = None
    outcome: list[Outcome] = field(default_factory=list)
    message: str = ""
    _lines: deque[str] = field(default_factory=lambda: deque(maxlen=_LINES))
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stop: threading.Event = field(default_factory=threading.Event)

    # for the worker

    def say(self, text: str) -> None:
        with self._lock:
            self._lines.append(text)

    def report(self, progress: Progress) -> None:
        self.progress = progress

    def cancelled(self) -> bool:
        return self._stop.is_set()

    def end(self, state: JobState, message: str = "", outcome: list[Outcome] | None = None) -> None:
        with self._lock:
            self.state, self.message, self.outcome = state, message, outcome or []
            self.ended_at = datetime.now(UTC)

    # for others

    def cancel(self) -> bool:
        """Ask it to stop after its current epoch; whether it was still running."""
        with self._lock:
            if self.ended_at is not None:
                return False
            self.state = "cancelling"
            self._stop.set()
            return True

    def view(self) -> dict[str, Any]:
        """All of it as it is at this moment, for `answers.JobView`."""
        with self._lock:
            now = self.progress
            return {
                "id": self.id, "kind": self.kind, "state": self.state, "began_at": self.began_at,
                "ended_at": self.ended_at, "lines": list(self._lines), "outcome": list(self.outcome),
                "message": self.message,
                "progress": {"what": now.what, "done": now.done, "total": now.total} if now is not None else None,
            }  # fmt: skip


class Jobs:
    """All jobs of a service. open_desk: makes a desk of the worker's own, so that it holds the claim alone."""

    def __init__(self, open_desk: Callable[[], Desk]) -> None:
        self._open = open_desk
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._newest: Job | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def start(self, kind: str, work: Work) -> Job | None:
        """The job, or None while another one runs."""
        with self._lock:
            if self.running() is not None:
                return None
            job = Job(kind)
            self._jobs[job.id] = self._newest = job
            while len(self._jobs) > _KEPT:
                self._jobs.popitem(last=False)
            # A daemon, because the ledger survives that it is killed, and a service that cannot end helps nobody.
            self._thread = threading.Thread(target=self._run, args=(job, work), name=f"job-{job.id}", daemon=True)
            self._thread.start()
            return job

    def get(self, job_id: str) -> Job | None:
        return self._jobs.get(job_id)

    def last(self) -> Job | None:
        return self._newest

    def running(self) -> Job | None:
        newest = self._newest
        return newest if newest is not None and newest.ended_at is None else None

    def close(self, patience: float = 30.0) -> None:
        """Cancel what runs, and wait some seconds for it to end."""
        job = self.running()
        if job is not None:
            job.cancel()
        if self._thread is not None:
            self._thread.join(patience)

    def _run(self, job: Job, work: Work) -> None:
        try:
            with self._open() as desk:
                outcome = work(desk, job)
            job.end("done", outcome=outcome)
        except Cancelled as error:
            job.end("cancelled", f"{error} Finished steps are kept; the next job goes on from there.")
        except ExpungeError as error:
            job.end("failed", str(error))
        except Exception as error:  # the last line of defence: a job must end, whatever happens
            log.error("job %s failed", job.id, exc_info=error)
            job.end("failed", f"unexpected {type(error).__name__}; the log of the service says where.")
