"""What a user waits for before anything happens."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from multiprocessing.forkserver import ensure_running
from pathlib import Path

from benchmarks.measure import Row, compare
from expunge.bench.engines import PRELOAD
from expunge.core.options import build
from expunge.requests.case.keys import create_keys
from expunge.requests.ledger.ledger import Ledger
from expunge.requests.records import Version
from expunge.requests.settings import Layout, WorkspaceSettings

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
    with tempfile.TemporaryDirectory() as folder:
        workspace = make_workspace(Path(folder))
        ratio, a, b = compare(lambda: call(EXPUNGE, "requests", "status", "-w", str(workspace)), base)
        what = "`expunge requests status` / `python -c 'import typer, pydantic'`"
        yield Row("start-up", what, ratio, f"{a:.2f} s / {b:.2f} s", most=4.0)
    yield workers()


def make_workspace(folder: Path) -> Path:
    """A workspace with a version and without a model: enough to look at its ledger."""
    layout = Layout(folder, build(WorkspaceSettings, {"model": "mlp", "data": "rows.csv"}))
    create_keys(layout.keys)
    layout.write()
    version = Version(
        id="0" * 64, parent=None, made_at=datetime.now(UTC), method="import", data="0" * 64, knows=1,
        file="none.safetensors", active=True,
    )  # fmt: skip
    with Ledger.open(layout.ledger_url) as ledger:
        ledger.import_version(version, by="benchmark")
    return folder


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
