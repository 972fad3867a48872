"""Where cells run: in this process, or in local worker processes. One small interface for all engines.

A work item is (recipe JSON, folder, cell ids): picklable, so that an engine on other machines can take it too.
Cells of one scenario and one seed go to one worker in order, because they share an original and a reference.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Protocol

from expunge.bench.store import Store
from expunge.core.errors import ExpungeError
from expunge.core.run import Progress

PRELOAD = ["expunge.bench.work"]
ATTEMPTS = 3
_POLL = 0.05


@dataclass(frozen=True)
class Work:
    """Cells that share their stages."""

    study: str
    folder: Path
    cells: tuple[str, ...]


class Engine(Protocol):
    """Runs work until every cell is done or failed; `tick` is called now and then from the calling process."""

    def run(self, work: Sequence[Work], store: Store, tick: Callable[[], None]) -> None: ...


class InProcess:
    """One cell after the other, here."""

    def __init__(self, progress: Callable[[Progress], None] | None = None) -> None:
        self.progress = progress

    def run(self, work: Sequence[Work], store: Store, tick: Callable[[], None]) -> None:
        import torch

        from expunge.bench.work import run_cells

        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in the workers: a result does not depend on the engine
        try:
            for item in work:
                run_cells(item.study, item.folder, item.cells, self.progress, tick)
        finally:
            torch.set_num_threads(threads)


class LocalProcesses:
    """`jobs` workers from a preloaded fork server, one thread each. A killed worker costs the cell it was running."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs

    def run(self, work: Sequence[Work], store: Store, tick: Callable[[], None]) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        waiting = list(work)
        running: dict[ForkServerProcess, Work] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self.jobs:
                    item = waiting.pop(0)
                    process = context.Process(target=_worker, args=(item,), daemon=True)
                    with _no_main_module():
                        process.start()
                    running[process] = item
                time.sleep(_POLL)
                tick()
                for process in [p for p in running if not p.is_alive()]:
                    rest = self._left(running.pop(process), process.exitcode, store)
                    process.close()
                    if rest is not None:
                        waiting.insert(0, rest)
        finally:
            for process, item in running.items():
                process.terminate()
                process.join()
                store.release(item.cells)

    def _left(self, item: Work, exitcode: int | None, store: Store) -> Work | None:
        """What a worker that ended has left undone; a cell that took it down too often has failed."""
        states = store.states()
        for cell in item.cells:
            if states.get(cell) == "running" and store.attempts(cell) >= ATTEMPTS:
                store.fail(cell, f"its worker died {ATTEMPTS} times (exit code {exitcode}); out of memory?")
        store.release(item.cells)
        states = store.states()
        rest = tuple(cell for cell in item.cells if states.get(cell) == "pending")
        if rest == item.cells and store.attempts(rest[0]) == 0:
            raise ExpungeError(f"a worker ended (exit code {exitcode}) before it could start; its lines above say why.")
        return Work(item.study, item.folder, rest) if rest else None


@contextmanager
def _no_main_module() -> Iterator[None]:
    """Workers need nothing of the caller's `__main__`: re-importing it would run an unguarded script once more."""
    main = sys.modules["__main__"]
    hidden = {name: vars(main).pop(name) for name in ("__file__", "__spec__") if name in vars(main)}
    main.__spec__ = None
    try:
        yield
    finally:
        vars(main).update(hidden)


def _worker(item: Work) -> None:
    import signal

    import torch

    from expunge.bench.work import run_cells

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers
    torch.set_num_threads(1)
    run_cells(item.study, item.folder, item.cells, None, lambda: None)
