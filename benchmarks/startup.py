"""What a user waits for before anything happens."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.forkserver import ensure_running
from pathlib import Path

from benchmarks.measure import Row, compare
from expunge.bench.engines import PRELOAD

EXPUNGE = str(Path(sys.executable).parent / "expunge")


def call(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def run() -> Iterator[Row]:
    def base() -> None:
        call(sys.executable, "-c", "import typer, pydantic")

    for words in (("--help",), ("list", "methods")):
        ratio, a, b = compare(lambda words=words: call(EXPUNGE, *words), base)
        what = f"`expunge {' '.join(words)}` / `python -c 'import typer, pydantic'`"
        yield Row("start-up", what, ratio, f"{a:.2f} s / {b:.2f} s", most=2.0)
    yield workers()


def workers() -> Row:
    """A worker of a study, from a process that has loaded everything, against a fresh one that loads it again."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    ensure_running()

    def forked() -> None:
        process = context.Process(target=nothing)
        process.start()
        process.join()

    ratio, a, b = compare(lambda: call(sys.executable, "-c", f"import {PRELOAD[0]}"), forked)
    return Row("start-up of a worker", "fresh process / fork server", ratio, f"{a:.2f} s / {b:.2f} s", least=5.0)


def nothing() -> None:
    """What the worker of the benchmark does."""
