"""Run, resume, look at and export a study."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pydantic

from expunge.api.record import CellRecord
from expunge.api.result import write_text
from expunge.bench import tables
from expunge.bench.cells import Cell, expand
from expunge.bench.engines import Engine, InProcess, LocalProcesses, WorkItem
from expunge.bench.kept import KeptModels
from expunge.bench.paper_tables import Spread, paper_tables, to_latex, to_markdown, to_typst
from expunge.bench.reading import load_study as load_study
from expunge.bench.recipe import Study
from expunge.bench.store import CellStore
from expunge.bench.workbench import Workbench
from expunge.core.errors import ExpungeError, UsageError
from expunge.core.run import Progress
from expunge.data.cache import cache_root

_PIECES = 4  # work items per worker: fewer leave workers idle at the end, more load shared stages more often


@dataclass(frozen=True)
class StudyResult:
    """A study as it stands. records: one per cell in the study's order; failed and unfinished ones say so."""

    folder: Path
    records: list[CellRecord]

    def frame(self, *, time: bool = True) -> pd.DataFrame:
        """Tidy: one row per (cell, metric, group), see `tables.frame`."""
        return tables.frame(self.records, time=time)

    def summary(self) -> pd.DataFrame:
        """Mean, deviation and interval over seeds, see `tables.summary`."""
        return tables.summary(self.records)

    def failed(self) -> list[CellRecord]:
        """Records of the cells without a result."""
        return [record for record in self.records if record.state != "done"]


def run_study(
    study: Study | str | Path,
    out: str | Path,
    *,
    jobs: int = 1,
    engine: Engine | None = None,
    progress: Callable[[Progress], None] | None = None,
    overrides: Iterable[str] = (),
    watch: Callable[[CellRecord], None] | None = None,
    again: bool = False,
) -> StudyResult:
    """Run every cell that is not done yet. Whatever interrupts, the same call goes on; results are in `out`.

    study: a file, with `overrides` such as "train.epochs=3", or a `Study`. jobs: worker processes, one thread
    each; results do not depend on it. engine: where cells run, instead of `jobs`. watch: called in this process with
    the record of every cell that is done or has failed, those of earlier calls first. again: compute finished cells
    once more. Raises `UsageError` for a study
    that cannot be right, `ExpungeError` if another process works in `out` or results cannot be written.
    """
    if jobs < 1:
        raise UsageError(f"jobs must be at least 1, got {jobs}.")
    chosen = engine or (InProcess(progress) if jobs == 1 else LocalProcesses(jobs))
    recipe = study if isinstance(study, Study) else load_study(study, overrides)
    grid = expand(recipe, Workbench(recipe, cache_root()).fingerprint())
    folder = Path(out)
    store = CellStore(folder, create=True)
    try:
        with store.claimed():
            store.plan(grid, recipe.model_dump_json(), again=again)
            if again:
                KeptModels(folder).drop(cell.model for cell in grid)
            states = store.states()
            left = [cell for cell in grid if states[cell.id] != "done"]
            reported: set[str] = set()

            def tick() -> None:
                if watch is not None:
                    _show_new(store, reported, watch)
                if progress is not None:
                    counts = store.counts()
                    progress(Progress("cells", counts.get("done", 0) + counts.get("failed", 0), len(grid), {}))

            tick()
            chosen.run(work_items(left, recipe, folder, jobs), store, tick)
            if watch is not None:
                _show_new(store, reported, watch)
            return StudyResult(folder, store.records())
    finally:
        store.close()


def _show_new(store: CellStore, reported: set[str], watch: Callable[[CellRecord], None]) -> None:
    """Hand over the cells that ended since the last look."""
    ended = {cell for cell, state in store.states().items() if state in ("done", "failed")} - reported
    for record in store.records(ended) if ended else ():
        watch(record)
    reported |= ended


def work_items(left: list[Cell], recipe: Study, folder: Path, jobs: int) -> list[WorkItem]:
    """Groups of cells that share their stages, cut where one group would keep a single worker busy.

    First pieces come first: they hold the reference, which the others then read from the cache.
    """
    groups: dict[object, list[str]] = {}
    for cell in left:
        groups.setdefault(cell.group, []).append(cell.id)
    size = len(left) if jobs == 1 else max(1, -(-len(left) // (jobs * _PIECES)))
    text = recipe.model_dump_json()
    pieces = [(at, ids[at : at + size]) for ids in groups.values() for at in range(0, len(ids), size)]
    return [WorkItem(text, folder, tuple(ids)) for _, ids in sorted(pieces, key=lambda piece: piece[0])]


def cells(folder: str | Path) -> list[CellRecord]:
    """All records of a study folder; unfinished and failed cells are there and say so."""
    with _opened(folder) as store:
        return store.records()


def study(folder: str | Path) -> Study | None:
    """The study of a folder, as it was run last; None if another version of Expunge wrote it."""
    with _opened(folder) as store:
        text = store.study()
    try:
        return Study.model_validate_json(text)
    except pydantic.ValidationError:
        return None


def status(folder: str | Path) -> dict[str, int]:
    """state -> number of cells. A cell that was running when its process died counts as pending."""
    with _opened(folder) as store:
        counts = store.counts()
        if "running" in counts and not store.is_claimed():
            counts["pending"] = counts.get("pending", 0) + counts.pop("running")
        return counts


def frame(folder: str | Path, *, time: bool = True) -> pd.DataFrame:
    """The tidy table of a study folder, see `tables.frame`."""
    return tables.frame(cells(folder), time=time)


def summary(folder: str | Path) -> pd.DataFrame:
    """The table over seeds of a study folder, see `tables.summary`."""
    return tables.summary(cells(folder))


def export(
    folder: str | Path,
    *,
    csv: Path | None = None,
    parquet: Path | None = None,
    latex: Path | None = None,
    typst: Path | None = None,
    markdown: Path | None = None,
    metrics: Sequence[str] = (),
    spread: Spread = "sd",
    time: bool = True,
) -> None:
    """Write tables.

    Args:
        folder: of a study.
        csv: file for the tidy table.
        parquet: file for the tidy table.
        latex: file for tables of a paper, see `paper_tables`.
        typst: file for tables of a paper.
        markdown: file for tables of a paper.
        metrics: columns of the tables of a paper.
        spread: deviation in the tables of a paper.
        time: False leaves out what differs between equal runs, so that tidy tables compare byte for byte.
    """
    records = cells(folder)
    table = tables.frame(records, time=time)
    if csv is not None:
        write_text(Path(csv), table.to_csv(index=False, lineterminator="\n"))
    if parquet is not None:
        _write_parquet(Path(parquet), table)
    writers = {to_latex: latex, to_typst: typst, to_markdown: markdown}
    if any(path is not None for path in writers.values()):
        rendered = paper_tables(records, metrics=metrics, spread=spread)
        for write, path in writers.items():
            if path is not None:
                write_text(Path(path), write(rendered))


def _write_parquet(path: Path, table: pd.DataFrame) -> None:
    part = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        table.to_parquet(part, index=False)
        Path(part).chmod(0o644)
        Path(part).replace(path)
    except OSError as error:
        if part:
            Path(part).unlink(missing_ok=True)
        raise ExpungeError(
            f"cannot write {path} ({error.strerror}); free some space or choose another folder."
        ) from None


@contextmanager
def _opened(folder: str | Path) -> Iterator[CellStore]:
    store = CellStore(Path(folder))
    try:
        yield store
    finally:
        store.close()
