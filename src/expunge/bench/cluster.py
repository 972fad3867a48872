"""Cells on many machines: Ray, or SLURM by submitit. No shared file system holds results; they come back as values.

Every machine needs Expunge and the recipe's data: a Hub id, a catalogue name, or a path that exists there. A machine
whose data differ refuses its cells. Shared stages (originals, references) are kept in the cache of each machine.
"""

from __future__ import annotations

import functools
import json
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expunge.api.record import CellRecord
from expunge.bench.cells import Cell, expand
from expunge.bench.engines import ATTEMPTS, WorkItem
from expunge.bench.reading import parse_study
from expunge.bench.store import CellStore
from expunge.bench.workbench import Workbench
from expunge.core.errors import UsageError
from expunge.data.cache import cache_root

_POLL = 0.5  # seconds between looks


@dataclass(frozen=True)
class Answer:
    """What a machine sends back. record: JSON, or "" where the cell failed with `error`. stages: as in the store."""

    record: str
    error: str
    stages: dict[str, dict[str, Any]]


def answer(study: str, cell: str, folder: str = "") -> Answer:
    """Run one cell; this is what travels to the machines, so it takes and gives plain values.

    folder: of the study, where unlearned models are kept; models of machines that cannot see it are not kept.
    """
    bench, cells = _bench(study)
    bench.folder = Path(folder) if folder and Path(folder).is_dir() else None
    if cell not in cells:
        return Answer("", "the data of this machine differ from those of the machine that planned the study.", {})
    record = bench.attempt(cells[cell])
    stages = dict(bench.stages)
    bench.stages.clear()
    return Answer("", record, stages) if isinstance(record, str) else Answer(record.model_dump_json(), "", stages)


@functools.lru_cache(maxsize=1)
def _bench(study: str) -> tuple[Workbench, dict[str, Cell]]:
    """A worker that lives on loads data and models once."""
    import torch

    torch.set_num_threads(1)  # as in the other engines: a result does not depend on the engine
    recipe = parse_study(json.loads(study))
    bench = Workbench(recipe, cache_root())
    return bench, {cell.id: cell for cell in expand(recipe, bench.fingerprint())}


def keep(store: CellStore, cell: str, answer: Answer) -> None:
    """Store the record of a finished cell, or the error of a failed one."""
    if answer.record:
        store.finish(cell, CellRecord.model_validate_json(answer.record))
    else:
        store.fail(cell, answer.error)
    store.keep_stages(answer.stages)


class Ray:
    """Cells as tasks of a Ray cluster. address: of a running one ("auto": of this machine's); none: start one here.

    A worker or machine that dies costs its cells, which run again elsewhere, at most three times.
    """

    def __init__(self, address: str | None = None, *, gpus: float = 0.0) -> None:
        try:
            import ray
        except ImportError as error:
            raise UsageError(f"the engine `ray` needs the extra `ray`: pip install 'expunge[ray]' ({error}).") from None
        self._ray, self.address, self.gpus = ray, address, gpus

    def run(self, work: Sequence[WorkItem], store: CellStore, tick: Callable[[], None]) -> None:
        """Run the cells as Ray tasks."""
        ray: Any = self._ray
        started_ray = not ray.is_initialized()
        if started_ray:
            try:
                _reachable(self.address)
                ray.init(self.address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
            except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
                reason = str(error).splitlines()[0]
                raise UsageError(
                    f"no Ray cluster at `{self.address}` ({reason}); start one with `ray start --head`, or leave out "
                    "--address."
                ) from None
        task = ray.remote(num_cpus=1, num_gpus=self.gpus, max_retries=ATTEMPTS - 1)(answer)
        try:
            self._run(ray, task, work, store, tick)
        finally:
            store.release([cell for item in work for cell in item.cells])
            if started_ray:
                ray.shutdown()

    def _run(self, ray: Any, task: Any, work: Sequence[WorkItem], store: CellStore, tick: Callable[[], None]) -> None:
        running: dict[Any, tuple[str, WorkItem]] = {}

        def submit(item: WorkItem, cells: Sequence[str]) -> None:
            for cell in cells:
                store.start(cell)
                running[task.remote(item.study, cell, str(item.folder.absolute()))] = (cell, item)

        for item in work:
            submit(item, item.cells[:1])  # it builds what the others of its group then find in the cache
        try:
            while running:
                ready, _ = ray.wait(list(running), timeout=_POLL)
                tick()
                for reference in ready:
                    cell, item = running.pop(reference)
                    try:
                        keep(store, cell, ray.get(reference))
                    except ray.exceptions.RayError as error:
                        reason = str(error).splitlines()[0]
                        store.fail(cell, f"its worker died {ATTEMPTS} times ({reason}); out of memory?")
                    if cell == item.cells[0]:
                        submit(item, item.cells[1:])
        finally:
            for reference in running:
                ray.cancel(reference, force=True)


def _reachable(address: str | None) -> None:
    """`OSError` if nothing listens at host:port; Ray itself would try for minutes."""
    host, _, port = (address or "").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=5).close()


class Slurm:
    """Cells as SLURM jobs by submitit, one job a work item. options: submitit parameters, e.g. slurm_partition.

    cluster: "slurm"; "local" runs the same jobs as processes here. A job that dies costs the cells it had not finished,
    which are submitted again, at most three times. folder: where submitit keeps scripts and logs, on a file system that
    all nodes share; none: a temporary one, which only "local" can use.
    """

    def __init__(self, *, cluster: str = "slurm", folder: Path | None = None, **options: Any) -> None:
        try:
            import submitit
        except ImportError as error:
            raise UsageError(
                f"the engine `slurm` needs the extra `slurm`: pip install 'expunge[slurm]' ({error})."
            ) from None
        self._submitit, self.cluster, self.folder, self.options = submitit, cluster, folder, options

    def run(self, work: Sequence[WorkItem], store: CellStore, tick: Callable[[], None]) -> None:
        """Run the cells as jobs of a job array; jobs that were lost are submitted again."""
        submitit: Any = self._submitit
        with tempfile.TemporaryDirectory(prefix="expunge-jobs-") as temporary:
            try:
                executor = submitit.AutoExecutor(folder=str(self.folder or temporary), cluster=self.cluster)
                executor.update_parameters(**{"timeout_min": 24 * 60, **self.options})
            except (RuntimeError, NameError, TypeError, ValueError) as error:
                raise UsageError(f"SLURM cannot be used here ({error}); is this a login node?") from None
            running: dict[Any, WorkItem] = {}

            def submit(item: WorkItem) -> None:
                for cell in item.cells:
                    store.start(cell)
                running[executor.submit(answers, item.study, item.cells, str(item.folder.absolute()))] = item

            try:
                for item in work:
                    submit(item)
                while running:
                    tick()
                    for job in [job for job in running if job.done()]:
                        rest = self._collect(job, running.pop(job), store)
                        if rest is not None:
                            submit(rest)
                    time.sleep(_POLL)
            finally:
                for job in running:
                    job.cancel(check=False)
                store.release([cell for item in work for cell in item.cells])

    def _collect(self, job: Any, item: WorkItem, store: CellStore) -> WorkItem | None:
        try:
            for cell, answer in zip(item.cells, job.result(), strict=True):
                keep(store, cell, answer)
            return None
        except self._submitit.core.utils.UncompletedJobError as error:
            reason = str(error).splitlines()[0]
        left = []
        for cell in item.cells:
            if store.attempts(cell) >= ATTEMPTS:
                store.fail(cell, f"its job died {ATTEMPTS} times ({reason}); out of memory or time?")
            else:
                left.append(cell)
        store.release(left)
        return WorkItem(item.study, item.folder, tuple(left)) if left else None


def answers(study: str, cells: Sequence[str], folder: str = "") -> list[Answer]:
    """All cells of a job, one after the other."""
    return [answer(study, cell, folder) for cell in cells]
