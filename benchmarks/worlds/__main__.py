"""`python -m benchmarks.worlds run`, `table`, `ranks`; see `--help` of each."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from filelock import FileLock

from benchmarks.worlds.cells import Bench, digest, run_cell
from benchmarks.worlds.requests import REQUESTS
from benchmarks.worlds.tables import as_row, label, merge, ranks, read, report
from benchmarks.worlds.worlds import WORLDS
from expunge.api.prepare import warm_up

RESULTS = Path("results/worlds")
PACKAGED = Path("src/expunge/methods/ranks.json")
BEGIN, END = "<!-- tables: python -m benchmarks.worlds table -->", "<!-- end of tables -->"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.worlds", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of cells.csv (default: %(default)s)")
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="run what is missing and put it into cells.csv; can be interrupted")
    running.add_argument("--worlds", nargs="+", choices=WORLDS, default=list(WORLDS))
    running.add_argument("--requests", nargs="+", choices=REQUESTS, default=list(REQUESTS))
    running.add_argument("--methods", nargs="*", default=["original", "unsee", "retrain-short"])
    running.add_argument("--option", nargs="*", default=[], metavar="NAME=JSON", help="an option of all methods")
    running.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    running.add_argument("--references", type=int, default=5, help="retrained models per cell (default: 5)")
    running.add_argument("--cache", type=Path, default=Path(os.environ.get("EXPUNGE_CACHE", ".cache")) / "worlds")
    commands.add_parser("table", help="write the tables of README.md from cells.csv")
    commands.add_parser("ranks", help="write ranks.json, and its copy in the package, from cells.csv")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warm_up()
    {"run": run, "table": table, "ranks": write_ranks}[given.command](given)


def run(given: argparse.Namespace) -> None:
    """Cells request by request, so that an interrupted run has whole rows; each is written when it is done."""
    options = {name: json.loads(value) for name, _, value in (text.partition("=") for text in given.option)}
    for world in given.worlds:
        for request in given.requests:
            bench = Bench(WORLDS[world], request, given.cache)
            references = [bench.reference_scores(number) for number in range(given.references)]
            if "retrain" in given.methods:
                write_rows(given.results, left_out(bench, references))
            for method in (m for m in given.methods if m != "retrain"):
                for seed in given.seeds:
                    cell = run_cell(bench, method, seed, options, references[0]["seconds"])
                    row = as_row(cell, bench.original_scores(seed), references)
                    write_rows(given.results, [row])
                    place = f"{world:8}{request:12}{label(row)} {seed}"
                    print(
                        f"{place}: {row['class']} {row['gap']} points at {row['cost']}",
                        {n: f"{row[n]}/{row['retrained_' + n]}" for n in ("forget", "retain", "test", "auc")},
                        row["error"],
                        flush=True,
                    )


def left_out(bench: Bench, references: Sequence[dict[str, float]]) -> list[dict[str, str]]:
    """Each retrained model beside the others: what the measure makes of a perfect method."""
    facts = {"world": bench.world.name, "request": bench.request, "method": "retrain", "options": "{}"}
    return [
        as_row(
            {**facts, **own, "seed": number},
            bench.original_scores(0),
            [other for other in references if other is not own],
        )
        for number, own in enumerate(references)
    ]


def write_rows(results: Path, rows: Sequence[dict[str, str]]) -> None:
    results.mkdir(parents=True, exist_ok=True)
    with FileLock(Path(tempfile.gettempdir()) / f"worlds-{digest(results.resolve())}.lock"):
        merge(results / "cells.csv", rows)


def table(given: argparse.Namespace) -> None:
    """Between the marks of README.md; what stands around them is kept."""
    page = given.results / "README.md"
    before, mark, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        sys.exit(f"{page} lacks the marks `{BEGIN}` and `{END}` between which the tables go.")
    made = report(read(given.results / "cells.csv"))
    page.write_text(f"{before}{BEGIN}\n\n{made}\n{END}{after}", encoding="utf-8")


def write_ranks(given: argparse.Namespace) -> None:
    text = json.dumps(ranks(read(given.results / "cells.csv")), indent=1) + "\n"
    for path in (given.results / "ranks.json", PACKAGED):
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
