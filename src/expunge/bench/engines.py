"""Where cells run: in this process, or in local worker processes. One small interface for all engines.

A work item is (recipe JSON, folder, cell ids): picklable, so that an engine on other machines can take it too.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import Protocol

from expunge.bench.store import CellStore
from expunge.core.errors import ExpungeError
from expunge.core.pool import end_with_parent, without_main_module
from expunge.core.run import Progress

PRELOAD = ["expunge.bench.work"]
ATTEMPTS = 3  # a cell that took its worker down so often has failed
_POLL = 0.5  # seconds between looks at the clock; a worker that ends is noticed at once


@dataclass(frozen=True)
class WorkItem:
    """Cells of one group, or a part of it: they share an original model and a retrained reference."""

    study: str
    folder: Path
    cells: tuple[str, ...]


class Engine(Protocol):
    """Runs work until every cell is done or failed; `tick` is called now and then from the calling process."""

    def run(self, work: Sequence[WorkItem], store: CellStore, tick: Callable[[], None]) -> None:
        """Run the cells, store their results, and call `tick` regularly."""


class InProcess:
    """One cell after the other, here."""

    def __init__(self, progress: Callable[[Progress], None] | None = None) -> None:
        self.progress = progress

    def run(self, work: Sequence[WorkItem], store: CellStore, tick: Callable[[], None]) -> None:
        """Run the cells one after the other in this process."""
        import torch

        from expunge.bench.work import run_cells

        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in the workers: a result does not depend on the engine
        try:
            for item in work:
                run_cells(item.study, item.folder, item.cells, self.progress, tick)
        finally:
            torch.set_num_threads(threads)
            for item in work:
                store.release(item.cells)


class LocalProcesses:
    """`jobs` workers from a preloaded fork server, one thread each. A killed worker costs the cell it was running.

    timeout: seconds after which a cell counts as hung and its worker is killed; none: cells may take for ever.
    """

    def __init__(self, jobs: int, *, timeout: float | None = None) -> None:
        self.jobs = jobs
        self.timeout = timeout
        multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOAD)
        ensure_running()  # it loads for seconds, while the caller reads its recipe and data

    def run(self, work: Sequence[WorkItem], store: CellStore, tick: Callable[[], None]) -> None:
        """Run the cells in parallel processes on this machine."""
        context = multiprocessing.get_context("forkserver")
        waiting = list(work)
        running: dict[ForkServerProcess, WorkItem] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self.jobs:
                    item = waiting.pop(0)
                    process = context.Process(target=_worker, args=(item,), daemon=True)
                    with without_main_module():
                        process.start()
                    running[process] = item
                wait([process.sentinel for process in running], timeout=_POLL)
                tick()
                self._kill_hung(running, store)
                for process in [p for p in running if not p.is_alive()]:
                    rest = self._left(running.pop(process), process.exitcode, store)
                    process.close()
                    if rest is not None:
                        waiting.insert(0, rest)
        finally:
            for process, item in running.items():
                process.kill()
                process.join()
                store.release(item.cells)

    def _kill_hung(self, running: dict[ForkServerProcess, WorkItem], store: CellStore) -> None:
        if self.timeout is None:
            return
        late = {cell for cell, (_, began) in store.running().items() if time.time() - began > self.timeout}
        for process, item in running.items():
            if late & set(item.cells):
                process.kill()
                process.join()

    def _left(self, item: WorkItem, exitcode: int | None, store: CellStore) -> WorkItem | None:
        """What a worker that ended has left undone; a cell that took it down too often has failed."""
        states = store.states()
        for cell in item.cells:
            if states.get(cell) == "running" and store.attempts(cell) >= ATTEMPTS:
                store.fail(cell, f"its worker died or hung {ATTEMPTS} times (exit code {exitcode}); out of memory?")
        store.release(item.cells)
        states = store.states()
        rest = tuple(cell for cell in item.cells if states.get(cell) == "pending")
        if rest == item.cells and store.attempts(rest[0]) == 0:
            raise ExpungeError(f"a worker ended (exit code {exitcode}) before it could start; its lines above say why.")
        return WorkItem(item.study, item.folder, rest) if rest else None


def _worker(item: WorkItem) -> None:
    import torch

    from expunge.bench.work import run_cells

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers
    end_with_parent()
    torch.set_num_threads(1)
    try:
        run_cells(item.study, item.folder, item.cells, None, lambda: None)
    except ExpungeError as error:  # the study cannot be read or its results cannot be written: not a cell's fault
        sys.stderr.write(f"{error}\n")
        sys.stderr.flush()
        os._exit(error.exit_code)
