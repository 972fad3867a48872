"""Results of a study in one SQLite file: a finished cell is never lost, a running one at most runs again."""

from __future__ import annotations

import json
import logging
import os
import socket
import sqlite3
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from expunge.api.record import CellRecord
from expunge.bench.cells import Cell
from expunge.core.errors import DataError, ExpungeError

log = logging.getLogger(__name__)

VERSION = 2  # of the tables below
_SCHEMA = """
CREATE TABLE IF NOT EXISTS cells (
    id TEXT PRIMARY KEY,
    position INTEGER,               -- in the study; NULL: no longer part of it, kept in case it comes back
    scenario TEXT NOT NULL,
    method TEXT NOT NULL,
    seeds TEXT NOT NULL,            -- JSON
    state TEXT NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'running', 'done', 'failed')),
    attempts INTEGER NOT NULL DEFAULT 0,
    owner TEXT NOT NULL DEFAULT '', -- host:pid that runs or ran it
    started REAL,                   -- Unix time
    finished REAL,
    error TEXT NOT NULL DEFAULT '',
    record TEXT                     -- JSON of CellRecord
) STRICT;
CREATE TABLE IF NOT EXISTS stages (key TEXT PRIMARY KEY, facts TEXT NOT NULL) STRICT; -- shared work, JSON
CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
"""
FILE = "study.sqlite"
STATES = ("done", "running", "pending", "failed")


class CellStore:
    """One connection per process; WAL, so that workers write while the parent reads."""

    def __init__(self, folder: Path, *, create: bool = False) -> None:
        self.path = folder / FILE
        if not create and not self.path.is_file():
            raise DataError(f"{folder} holds no study; name a folder that `expunge run` wrote.")
        with self._said():
            folder.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=60, isolation_level=None)
            self._db.text_factory = partial(str, encoding="utf-8", errors="replace")  # a flipped byte stops nothing
            try:
                self._open()
            except BaseException:
                self._db.close()
                raise

    def _open(self) -> None:
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        version = int(self._db.execute("PRAGMA user_version").fetchone()[0])
        empty = not self._db.execute("SELECT 1 FROM sqlite_master").fetchone()
        if version != VERSION and not (empty and version == 0):
            raise DataError(f"{self.path} was written by another version of Expunge; choose another folder.")
        if empty:
            self._db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Only one process at a time works on a study; the claim ends with the process, however it ends."""
        lock = self._lock()
        try:
            with self._said():
                lock.acquire(timeout=0)
        except Timeout:
            raise ExpungeError(
                f"another process is working on {self.path.parent}; wait for it, or choose another folder."
            ) from None
        try:
            yield
        finally:
            lock.release()

    def is_claimed(self) -> bool:
        """Whether a process is working on this study right now."""
        lock = self._lock()
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        except OSError:  # a read-only copy: nobody can be working on it
            return False
        lock.release()
        return False

    def plan(self, cells: Sequence[Cell], study: str, *, again: bool = False) -> None:
        """Make the study's cells the current ones.

        Failed, interrupted and damaged ones run again; with `again`, all do.
        """
        with self._transaction():
            self._db.execute("UPDATE cells SET position = NULL")
            for position, cell in enumerate(cells):
                self._db.execute(
                    "INSERT INTO cells (id, position, scenario, method, seeds) VALUES (?, ?, ?, ?, ?) "
                    "ON CONFLICT (id) DO UPDATE SET position = excluded.position, scenario = excluded.scenario, "
                    "method = excluded.method",
                    (cell.id, position, cell.scenario_label, cell.method_label, json.dumps(cell.seeds)),
                )
            self._db.execute("UPDATE cells SET state = 'pending', attempts = 0 WHERE state IN ('running', 'failed')")
            for cell, record in self._db.execute("SELECT id, record FROM cells WHERE state = 'done'").fetchall():
                if _read_record(record) is None:
                    self._db.execute("UPDATE cells SET state = 'pending', attempts = 0 WHERE id = ?", (cell,))
            if again:
                self._db.execute("UPDATE cells SET state = 'pending', attempts = 0 WHERE position IS NOT NULL")
            self._db.execute("INSERT OR REPLACE INTO facts VALUES ('study', ?)", (study,))

    def study(self) -> str:
        """JSON of the study."""
        return str(self._rows("SELECT value FROM facts WHERE key = 'study'")[0][0])

    def states(self) -> dict[str, str]:
        """id -> state of the current cells, in the study's order."""
        return dict(self._rows("SELECT id, state FROM cells WHERE position IS NOT NULL ORDER BY position"))

    def counts(self) -> dict[str, int]:
        """state -> number of current cells, where there are any."""
        rows = dict(self._rows("SELECT state, count(*) FROM cells WHERE position IS NOT NULL GROUP BY state"))
        return {state: rows[state] for state in STATES if state in rows}

    def attempts(self, cell: str) -> int:
        """How often the cell was started."""
        return int(self._rows("SELECT attempts FROM cells WHERE id = ?", cell)[0][0])

    def running(self) -> dict[str, tuple[str, float]]:
        """id -> (owner, Unix time it started) of the cells that run."""
        rows = self._rows("SELECT id, owner, started FROM cells WHERE state = 'running' AND position IS NOT NULL")
        return {cell: (owner, started) for cell, owner, started in rows}

    def start(self, cell: str) -> None:
        """Mark a cell as running in this process."""
        owner = f"{socket.gethostname()}:{os.getpid()}"
        with self._transaction():
            self._db.execute(
                "UPDATE cells SET state = 'running', attempts = attempts + 1, owner = ?, started = ?, finished = NULL "
                "WHERE id = ?",
                (owner, time.time(), cell),
            )

    def finish(self, cell: str, record: CellRecord) -> None:
        """Store the record of a finished cell."""
        with self._transaction():
            self._db.execute(
                "UPDATE cells SET state = 'done', error = '', finished = ?, record = ? WHERE id = ?",
                (time.time(), record.model_dump_json(), cell),
            )

    def fail(self, cell: str, error: str) -> None:
        """Store the error of a failed cell."""
        with self._transaction():
            self._db.execute(
                "UPDATE cells SET state = 'failed', error = ?, finished = ?, record = NULL WHERE id = ?",
                (error, time.time(), cell),
            )

    def release(self, cells: Sequence[str]) -> None:
        """Whatever of these was running goes back to pending: its worker is gone."""
        with self._transaction():
            for cell in cells:
                self._db.execute("UPDATE cells SET state = 'pending' WHERE id = ? AND state = 'running'", (cell,))

    def keep_stages(self, stages: Mapping[str, Mapping[str, Any]]) -> None:
        """What shared stages were built and what they took; the first word counts, later ones read a cache."""
        with self._transaction():
            for key, facts in stages.items():
                self._db.execute("INSERT OR IGNORE INTO stages VALUES (?, ?)", (key, json.dumps(facts)))

    def stages(self) -> dict[str, dict[str, Any]]:
        """Key -> facts of the shared stages: originals and references."""
        return {key: json.loads(facts) for key, facts in self._rows("SELECT key, facts FROM stages ORDER BY key")}

    def records(self, only: Collection[str] | None = None) -> list[CellRecord]:
        """One record per current cell, in order; unfinished ones say so instead of being left out.

        only: ids of the cells that are asked for; none: all.
        """
        rows = self._rows(
            "SELECT id, scenario, method, seeds, state, error, record FROM cells "
            "WHERE position IS NOT NULL ORDER BY position"
        )
        records, damaged = [], 0
        for cell, scenario, method, seeds, state, error, record in rows:
            if only is not None and cell not in only:
                continue
            loaded = _read_record(record) if state == "done" else None
            if loaded is None:
                if state == "done":
                    damaged += 1
                    state, error = "damaged", f"its record in {self.path} is damaged; run the study again to measure it"
                loaded = CellRecord(
                    id=cell,
                    state="failed",
                    status=state if state in ("failed", "damaged") else "missing",
                    error=error or f"not finished ({state})",
                    scenario={"label": scenario},
                    method={"label": method, "name": method},
                    seeds=_read_seeds(seeds),
                )
            loaded.scenario["label"], loaded.method["label"] = scenario, method
            records.append(loaded)
        if damaged:
            log.warning(
                "%d of %d records in %s are damaged and are left out; run the study again to measure them.",
                damaged,
                len(records),
                self.path,
            )
        return records

    def _lock(self) -> FileLock:
        return FileLock(self.path.with_name(".lock"), is_singleton=False)

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with self._said():
            return self._db.execute(query, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._said():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full disk has rolled back already
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _said(self) -> Iterator[None]:
        try:
            yield
        except Timeout:
            raise
        except (sqlite3.Error, OSError, UnicodeDecodeError) as error:  # SQLite quotes a damaged schema in its errors
            raise ExpungeError(
                f"the results in {self.path} cannot be read or written ({error}); free some space, or choose another "
                "folder. Finished cells are kept."
            ) from None


def _read_record(text: str | None) -> CellRecord | None:
    """None for what is no record, such as a damaged one."""
    try:
        return CellRecord.model_validate_json(text or "")
    except ValueError:
        return None


def _read_seeds(text: str) -> dict[str, int]:
    try:
        return {str(name): int(seed) for name, seed in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError):
        return {}
