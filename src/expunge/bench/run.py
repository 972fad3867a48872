"""Run, resume, look at and export a study."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from expunge.api.record import CellRecord
from expunge.api.result import write_text
from expunge.bench.cells import Cell, Workbench
from expunge.bench.cells import cells as expand
from expunge.bench.engines import Engine, InProcess, LocalProcesses, Work
from expunge.bench.recipe import Study, load_study
from expunge.bench.store import Store
from expunge.core.errors import UsageError
from expunge.core.run import Progress
from expunge.data.cache import cache_root

TIME_METRICS = ("seconds", "scale_up")
_KEYS = ["scenario", "method", "seed_data", "seed_train", "seed_unlearn", "seed_evaluate"]


def run_study(
    study: Study | str | Path,
    *,
    out: Path,
    jobs: int = 1,
    engine: Engine | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> list[CellRecord]:
    """Run every cell that is not done yet and return all records, in the recipe's order.

    Finished cells are kept in `out/study.sqlite`; whatever interrupts, the same call goes on. Results do not depend
    on `jobs`: every cell runs on one thread.
    """
    recipe = study if isinstance(study, Study) else load_study(study)
    if jobs < 1:
        raise UsageError(f"jobs must be at least 1, got {jobs}.")
    bench = Workbench(recipe, cache_root())
    grid = expand(recipe, bench.fingerprint())
    store = Store(Path(out), create=True)
    try:
        store.plan(grid, recipe.model_dump_json())
        states = store.states()
        left = [cell for cell in grid if states[cell.id] != "done"]
        work = grouped(left, recipe, Path(out))

        def tick() -> None:
            if progress is not None:
                done = sum(state in ("done", "failed") for state in store.states().values())
                progress(Progress("cells", done, len(grid), {}))

        chosen = engine or (InProcess(progress) if jobs == 1 else LocalProcesses(jobs))
        chosen.run(work, store, tick)
        return store.records()
    finally:
        store.close()


def grouped(left: list[Cell], recipe: Study, out: Path) -> list[Work]:
    """One work item per (scenario, seeds): its cells share the original and the retrained reference."""
    text = recipe.model_dump_json()
    keyed = itertools.groupby(left, key=lambda cell: (cell.scenario_label, tuple(cell.seeds.values())))
    return [Work(text, out, tuple(cell.id for cell in group)) for _, group in keyed]


def cells(folder: Path) -> list[CellRecord]:
    """All records of a study folder; unfinished and failed cells are there and say so."""
    store = Store(Path(folder))
    try:
        return store.records()
    finally:
        store.close()


def status(folder: Path) -> dict[str, int]:
    """state -> number of cells."""
    store = Store(Path(folder))
    try:
        states = list(store.states().values())
    finally:
        store.close()
    return {state: states.count(state) for state in ("done", "running", "pending", "failed") if state in states}


def frame(records: list[CellRecord], *, time: bool = True) -> pd.DataFrame:
    """Tidy: one row per (cell, metric, group). A failed cell is one row with its error and no metric."""
    rows = []
    for record in records:
        keys = {
            "scenario": record.scenario["label"],
            "method": record.method["label"],
            **{f"seed_{name}": seed for name, seed in record.seeds.items()},
            "state": record.state,
            "status": record.status if record.state == "done" else "",
            "error": record.error,
        }
        scores = [s for s in record.scores if time or s["metric"] not in TIME_METRICS]
        rows += [{**keys, **score} for score in scores] or [keys]
    columns = [*_KEYS, "state", "status", "error", "metric", "group", "value", "low", "high", "unit", "direction"]
    return pd.DataFrame(rows, columns=columns)


def summary(records: list[CellRecord]) -> pd.DataFrame:
    """Mean, sample deviation, n, and the 95 % t-interval of the mean over seeds, per scenario, method and metric.

    `failed` counts the seeds without a result: they are missing from n, never from the table.
    """
    from scipy.stats import t

    table = frame(records)
    keys = ["scenario", "method"]
    failed = table[table["state"] == "failed"].groupby(keys, sort=False).size()
    done = table[table["state"] == "done"]
    grouped = done.groupby([*keys, "metric", "group"], sort=False)["value"].agg(["mean", "std", "count"])
    half = t.ppf(0.975, (grouped["count"] - 1).clip(lower=1)) * grouped["std"] / grouped["count"] ** 0.5
    result = grouped.assign(low=grouped["mean"] - half, high=grouped["mean"] + half).reset_index()
    pairs = list(zip(result["scenario"], result["method"], strict=True))
    result["failed"] = [int(failed.get(pair, 0)) for pair in pairs]
    empty = [pair for pair in failed.index if pair not in set(pairs)]
    rows = pd.DataFrame([{"scenario": s, "method": m, "count": 0, "failed": int(failed[(s, m)])} for s, m in empty])
    return pd.concat([result, rows], ignore_index=True) if empty else result


def export(
    folder: Path, *, csv: Path | None = None, parquet: Path | None = None, latex: Path | None = None, time: bool = True
) -> None:
    """Write the table. time=False leaves out what differs between equal runs: then CSVs compare byte for byte."""
    records = cells(folder)
    table = frame(records, time=time)
    if csv is not None:
        write_text(csv, table.to_csv(index=False, lineterminator="\n"))
    if parquet is not None:
        table.to_parquet(parquet, index=False)
    if latex is not None:
        write_text(latex, latex_table(records))


def latex_table(records: list[CellRecord]) -> str:
    """mean +- deviation in percent of the accuracies and gaps, methods by metrics, one tabular per scenario."""
    table = summary(records)
    parts = []
    for scenario, block in table.groupby("scenario", sort=False):
        block = block[(block["group"] == "") & block["metric"].astype(str).str.endswith(("accuracy", "gap"))]
        metrics = list(dict.fromkeys(block["metric"]))
        lines = [f"% {scenario}", f"\\begin{{tabular}}{{l{'r' * len(metrics)}}}"]
        lines.append(" & ".join(["method", *(m.replace("_", " ") for m in metrics)]) + r" \\ \hline")
        for method, rows in block.groupby("method", sort=False):
            by_metric = rows.set_index("metric")
            numbers = [_latex_number(by_metric, m) for m in metrics]
            lines.append(" & ".join([str(method).replace("_", r"\_").replace("&", r"\&"), *numbers]) + r" \\")
        parts.append("\n".join([*lines, r"\end{tabular}"]))
    return "\n\n".join(parts) + "\n"


def _latex_number(by_metric: pd.DataFrame, metric: str) -> str:
    if metric not in by_metric.index:
        return "--"
    mean, std = by_metric.loc[metric, "mean"], by_metric.loc[metric, "std"]
    return f"{100 * mean:.1f}" + (rf" $\pm$ {100 * std:.1f}" if pd.notna(std) else "")
