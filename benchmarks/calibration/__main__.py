"""`python -m benchmarks.calibration run OUT`, `truth OUT`, `table OUT`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer

from benchmarks.calibration.tables import report
from benchmarks.calibration.tasks import REQUESTS, TASKS
from benchmarks.calibration.trials import differs
from benchmarks.calibration.trials import run as run_one
from expunge.api.result import write_text
from expunge.data.cache import cache_root

app = typer.Typer(add_completion=False)


@app.command()
def run(
    out: Path,
    task: Annotated[list[str] | None, typer.Option(help="Tasks; default: all.")] = None,
    request: Annotated[list[str] | None, typer.Option(help="Requests; default: all.")] = None,
) -> None:
    """Judge every model with known truth; what OUT holds is not done again, trained models are kept in the cache."""
    torch.set_num_threads(1)
    path = out / "trials.csv"
    done = pd.read_csv(path) if path.is_file() else pd.DataFrame({"task": [], "request": []})
    for wanted in request or REQUESTS:
        for name in task or TASKS:
            if ((done["task"] == name) & (done["request"] == wanted)).any():
                continue
            rows = pd.DataFrame(run_one(TASKS[name], wanted, (cache_root() or out) / "calibration"))
            done = pd.concat([done, rows], ignore_index=True)
            write_text(path, done.to_csv(index=False))
            sys.stdout.write(f"{name} {wanted}: {len(rows)} verdicts\n")
            sys.stdout.flush()
    table(out)


@app.command()
def truth(out: Path) -> None:
    """Whether originals differ from retrained models at all, for every pair: OUT/differs.csv, and the page anew."""
    torch.set_num_threads(1)
    cache = (cache_root() or out) / "calibration"
    rows = [differs(TASKS[name], request, cache) for name in TASKS for request in REQUESTS]
    write_text(out / "differs.csv", pd.DataFrame(rows).to_csv(index=False))
    table(out)


@app.command()
def table(out: Path) -> None:
    """Write OUT/README.md from OUT/trials.csv."""
    known = out / "differs.csv"
    text = report(pd.read_csv(out / "trials.csv"), pd.read_csv(known) if known.is_file() else None)
    write_text(out / "README.md", text)
    sys.stdout.write(text)


if __name__ == "__main__":
    app()
