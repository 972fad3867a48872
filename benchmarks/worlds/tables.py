"""From cells to results: one row per cell in cells.csv, the tables of README.md, and the ranks a planner reads."""

from __future__ import annotations

import csv
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.worlds.judge import ACCURACIES, Scores, classify, differences, gap
from benchmarks.worlds.worlds import TUNED, WORLDS

Row = dict[str, str]
CLASSES = ("good", "partial", "nothing", "over-forgot", "destroyed", "error")
KEY = ("world", "request", "method", "options", "seed")
COLUMNS = (
    *KEY, "class", "gap", "cost", *(f"{kind}{name}" for name in (*ACCURACIES, "auc") for kind in ("", "retrained_")),
    "loss", "cpu_seconds", "retraining_seconds", "references", "status", "source", "error", "notes",
)  # fmt: skip


def as_row(cell: dict[str, Any], original: Scores, references: Sequence[Scores]) -> Row:
    """The cell beside its references. A cell without scores is an error."""
    seconds = statistics.mean(r["seconds"] for r in references)
    failed = "error" in cell
    row = {
        **{name: cell[name] for name in KEY},
        "class": "error" if failed else classify(cell, original, references),
        "gap": "" if failed else f"{gap(differences(cell, references)):.2f}",
        "cost": f"{cell['seconds'] / seconds:.3f}",
        "cpu_seconds": f"{cell['seconds']:.2f}",
        "retraining_seconds": f"{seconds:.2f}",
        "references": len(references),
        **{name: cell.get(name, "") for name in ("status", "source", "error", "notes")},
    }
    for name in (*ACCURACIES, "auc"):
        row[name] = "" if failed else f"{cell[name]:.4f}"
        row[f"retrained_{name}"] = f"{statistics.mean(r[name] for r in references):.4f}"
    row["loss"] = "" if failed else f"{cell['loss']:.4f}"
    return {name: str(row[name]) for name in COLUMNS}


def read(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def merge(path: Path, rows: Iterable[Row]) -> None:
    """Put rows in the place of those with the same key; the file stays sorted."""
    kept = {tuple(row[name] for name in KEY): row for row in [*read(path), *rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept[key] for key in sorted(kept))


def label(row: Row) -> str:
    return row["method"] if row["options"] == "{}" else f"{row['method']} {row['options']}"


def grouped(rows: Iterable[Row], by: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    groups = defaultdict(list)
    for row in rows:
        groups[by(row)].append(row)
    return dict(groups)


def overview(rows: Sequence[Row]) -> str:
    """Methods, best first: share of good cells, the other classes, mean gap, median cost."""
    lines = [
        "| method | cells | good | " + " | ".join(CLASSES[1:]) + " | gap, points | cost |",
        "|---" * (5 + len(CLASSES)) + "|",
    ]
    groups = grouped(rows, label)
    for name in sorted(groups, key=lambda n: (-good_share(groups[n]), mean_gap(groups[n]) or 0.0)):
        cells = groups[name]
        counts = [sum(row["class"] == kind for row in cells) for kind in CLASSES]
        gaps = mean_gap(cells)
        lines.append(
            f"| {name} | {len(cells)} | {good_share(cells):.0%} | {' | '.join(map(str, counts[1:]))} | "
            f"{'-' if gaps is None else f'{gaps:.1f}'} | {cost(cells):.2f} |"
        )
    return "\n".join(lines)


def by_cell(rows: Sequence[Row]) -> str:
    """One method: world by request, how many seeds were good and the mean gap."""
    requests = sorted({row["request"] for row in rows})
    lines = ["| | " + " | ".join(requests) + " |", "|---" * (1 + len(requests)) + "|"]
    for world, cells in grouped(rows, lambda row: row["world"]).items():
        parts = []
        for request in requests:
            here = [row for row in cells if row["request"] == request]
            gaps = mean_gap(here)
            count = sum(row["class"] == "good" for row in here)
            parts.append(f"{count} of {len(here)}, {gaps:.1f}" if gaps is not None else "-")
        lines.append(f"| {world} | {' | '.join(parts)} |")
    return "\n".join(lines)


def ranks(rows: Sequence[Row]) -> dict[str, Any]:
    """Per method (default options) and kind of request: share of good cells, mean gap, median cost, cells."""
    default = [row for row in rows if row["options"] == "{}"]
    return {
        method: {kind: summary(cells) for kind, cells in sorted(grouped(own, lambda row: row["request"]).items())}
        for method, own in sorted(grouped(default, lambda row: row["method"]).items())
    }


def summary(cells: Sequence[Row]) -> dict[str, Any]:
    gaps = mean_gap(cells)
    return {
        "good": round(good_share(cells), 3),
        "gap": None if gaps is None else round(gaps, 2),
        "cost": round(cost(cells), 3),
        "cells": len(cells),
    }


def good_share(cells: Sequence[Row]) -> float:
    return sum(row["class"] == "good" for row in cells) / len(cells)


def mean_gap(cells: Sequence[Row]) -> float | None:
    """Mean over the cells that have a result, in points; None if there is none."""
    gaps = [float(row["gap"]) for row in cells if row["gap"]]
    return statistics.mean(gaps) if gaps else None


def cost(cells: Sequence[Row]) -> float:
    """Median of CPU seconds over those of a retraining."""
    return statistics.median(float(row["cost"]) for row in cells)


def report(rows: Sequence[Row]) -> str:
    """The tables of results/worlds: all worlds, those that `unsee` was chosen on, and the others apart."""
    tuned = [row for row in rows if row["world"] in TUNED]
    apart = [row for row in rows if row["world"] not in TUNED]
    others = ", ".join(sorted(set(WORLDS) - set(TUNED)))
    parts = ["## All worlds", overview(rows), f"## The other worlds: {others}", overview(apart)]
    parts += [f"## The worlds that `unsee` was chosen on: {', '.join(TUNED)}", overview(tuned)]
    for method in ("unsee", "retrain-short"):
        own = [row for row in rows if label(row) == method]
        if own:
            parts += [f"## {method}: good seeds and mean gap per cell", by_cell(own)]
    return "\n\n".join(parts) + "\n"
