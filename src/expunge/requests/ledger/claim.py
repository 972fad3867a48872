"""Only one process at a time works on a workspace; the claim ends with the process, however it ends."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import sqlalchemy as sa
from filelock import FileLock, Timeout

from expunge.core.errors import ExpungeError
from expunge.requests.ledger.database import CLAIM, Database

_PAUSE = 0.2  # seconds between two attempts at PostgreSQL's lock


class FileClaim:
    """For SQLite: a lock of the operating system on a file beside the ledger."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = FileLock(path.with_name(f"{path.name}.lock"), is_singleton=False, thread_local=False)

    def take(self, timeout: float) -> bool:
        try:
            self._lock.acquire(timeout=timeout)
        except Timeout:
            return False
        except OSError as error:
            raise ExpungeError(f"{self._path.parent} cannot be claimed ({error.strerror}).") from None
        return True

    def check(self) -> None:
        """Such a lock is never lost."""

    def drop(self) -> None:
        self._lock.release()


class ServerClaim:
    """For PostgreSQL: an advisory lock on a connection of its own, whichever machine it comes from."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: sa.Connection | None = None

    def take(self, timeout: float) -> bool:
        connection = self._database.connection()
        end = time.monotonic() + timeout
        taken = False
        try:
            with self._database.said():
                while not (taken := bool(connection.execute(sa.select(sa.func.pg_try_advisory_lock(CLAIM))).scalar())):
                    if time.monotonic() >= end:
                        return False
                    time.sleep(_PAUSE)
        finally:
            if not taken:
                connection.close()
        self._connection = connection
        return True

    def check(self) -> None:
        """A server that was restarted has forgotten the lock, and another process may work by now."""
        if self._connection is not None:
            try:
                self._connection.execute(sa.text("SELECT 1"))
            except sa.exc.SQLAlchemyError:
                raise ExpungeError(
                    f"the connection to the ledger {self._database.name} was lost, and the claim with it; start again, "
                    "what was finished is kept."
                ) from None

    def drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sa.exc.SQLAlchemyError):  # a lost connection has let go already
                # The end of the session would free the lock too, but a moment later: the next one would find it taken.
                connection.execute(sa.select(sa.func.pg_advisory_unlock(CLAIM)))
            with contextlib.suppress(sa.exc.SQLAlchemyError):
                connection.close()
