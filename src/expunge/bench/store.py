"""Results of a study in one SQLite file: a finished cell is never lost, a running one at most runs again."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from expunge.api.record import CellRecord
from expunge.bench.cells import Cell
from expunge.core.errors import DataError, ExpungeError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS cells (
    id TEXT PRIMARY KEY,
    position INTEGER,               -- in the recipe; NULL: no longer part of it, kept in case it comes back
    scenario TEXT NOT NULL,
    method TEXT NOT NULL,
    seeds TEXT NOT NULL,            -- JSON
    state TEXT NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'running', 'done', 'failed')),
    attempts INTEGER NOT NULL DEFAULT 0,
    error TEXT NOT NULL DEFAULT '',
    record TEXT                     -- JSON of CellRecord
) STRICT;
CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
"""
FILE = "study.sqlite"


class Store:
    """One connection per process; WAL, so that workers write while the parent reads."""

    def __init__(self, folder: Path, *, create: bool = False) -> None:
        self.path = folder / FILE
        if not create and not self.path.is_file():
            raise DataError(f"{folder} holds no study; name a folder that `expunge run` wrote.")
        with self._said():
            folder.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=60, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)

    def close(self) -> None:
        self._db.close()

    def plan(self, cells: Sequence[Cell], study: str) -> None:
        """Make the recipe's cells the current ones. Finished ones stay finished; failed and interrupted run again."""
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
            self._db.execute("INSERT OR REPLACE INTO facts VALUES ('study', ?)", (study,))

    def study(self) -> str:
        """JSON of the recipe."""
        return str(self._rows("SELECT value FROM facts WHERE key = 'study'")[0][0])

    def states(self) -> dict[str, str]:
        """id -> state of the current cells, in the recipe's order."""
        rows = self._rows("SELECT id, state FROM cells WHERE position IS NOT NULL ORDER BY position")
        return {str(cell): str(state) for cell, state in rows}

    def attempts(self, cell: str) -> int:
        return int(self._rows("SELECT attempts FROM cells WHERE id = ?", cell)[0][0])

    def start(self, cell: str) -> None:
        with self._transaction():
            self._db.execute("UPDATE cells SET state = 'running', attempts = attempts + 1 WHERE id = ?", (cell,))

    def finish(self, cell: str, record: CellRecord) -> None:
        with self._transaction():
            self._db.execute(
                "UPDATE cells SET state = 'done', error = '', record = ? WHERE id = ?", (record.model_dump_json(), cell)
            )

    def fail(self, cell: str, error: str) -> None:
        with self._transaction():
            self._db.execute("UPDATE cells SET state = 'failed', error = ?, record = NULL WHERE id = ?", (error, cell))

    def release(self, cells: Sequence[str]) -> None:
        """Whatever of these was running goes back to pending: its worker is gone."""
        with self._transaction():
            for cell in cells:
                self._db.execute("UPDATE cells SET state = 'pending' WHERE id = ? AND state = 'running'", (cell,))

    def records(self) -> list[CellRecord]:
        """One record per current cell, in order; unfinished ones say so instead of being left out."""
        rows = self._rows(
            "SELECT id, scenario, method, seeds, state, error, record FROM cells "
            "WHERE position IS NOT NULL ORDER BY position"
        )
        found = []
        for cell, scenario, method, seeds, state, error, record in rows:
            if state == "done":
                loaded = CellRecord.model_validate_json(str(record))
                loaded.scenario["label"], loaded.method["label"] = scenario, method
            else:
                loaded = CellRecord(
                    id=str(cell),
                    state="failed",
                    error=str(error) or f"not finished ({state})",
                    scenario={"label": scenario},
                    method={"label": method, "name": str(method)},
                    seeds=json.loads(str(seeds)),
                )
            found.append(loaded)
        return found

    def _rows(self, query: str, *values: object) -> list[tuple[object, ...]]:
        with self._said():
            return self._db.execute(query, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._said():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    @contextmanager
    def _said(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.DatabaseError, OSError) as error:
            raise ExpungeError(
                f"the results in {self.path} cannot be read or written ({error}); free some space, or choose another "
                "folder. Finished cells are kept."
            ) from None
