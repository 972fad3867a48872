"""The machinery of studies: what a cell costs beside its work, a finished study again, two workers against one."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.measure import Row, compare, seconds
from expunge.bench.reading import parse_study
from expunge.bench.run import cells, run_study
from expunge.cli.reports import write_report

IDLE: dict[str, Any] = {
    "name": "idle",
    "data": {"source": "digits"},
    "model": {"name": "mlp"},
    "train": {"epochs": 1, "batch_size": 64},
    "scenarios": ["class:3", "random:0.1"],
    "metrics": ["accuracy"],
    "curves": False,
}


def run() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        few, many = (_idle(count) for count in (5, 50))
        run_study(few, Path(folder) / "warm")
        short = seconds(lambda: run_study(few, Path(folder) / "few"))
        long = seconds(lambda: run_study(many, Path(folder) / "many"))
        cell = (long - short) / (len(cells(Path(folder) / "many")) - len(cells(Path(folder) / "few")))
        yield Row("studies: seconds per cell beside its work", "digits, mlp, SQLite with fsync", cell,
                  "cells of the method `original`, accuracy alone", most=0.3)  # fmt: skip

        big = Path(folder) / "big"
        study = _idle(100)
        run_study(study, big)
        count = len(cells(big))
        began = time.perf_counter()
        run_study(study, big)
        write_report([big], big / "report.html")
        took = time.perf_counter() - began
        yield Row("studies: a finished study again, seconds", f"{count} cells, with its report", took, "", most=10)

        work = parse_study({
            **IDLE, "train": {"epochs": 60, "batch_size": 16}, "scenarios": ["random:0.1"], "seeds": list(range(8)),
            "methods": ["original", "retrain", {"name": "finetune", "epochs": 20, "batch_size": 16}],
        })  # fmt: skip
        turn = iter(range(1000))

        def with_jobs(jobs: int) -> None:
            place = Path(folder) / f"jobs {next(turn)}"
            os.environ["EXPUNGE_CACHE"] = str(place / "cache")  # nothing trained before
            run_study(work, place, jobs=jobs)

        ratio, a, b = compare(lambda: with_jobs(1), lambda: with_jobs(2), repeats=1, warm=False)
        yield Row("studies: one worker / two workers", "digits, mlp, 8 seeds, start of the workers included", ratio,
                  f"{a:.1f} s / {b:.1f} s", least=1.5)  # fmt: skip


def _idle(count: int) -> Any:
    """`count` x 2 cells that do nothing, of settings that differ."""
    rest = [{"name": "finetune", "label": f"idle {i}", "epochs": 0, "lr": 0.001 * (i + 1)} for i in range(count - 2)]
    return parse_study({**IDLE, "methods": ["original", "retrain", *rest]})
