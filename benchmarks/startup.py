"""What a user waits for before anything happens."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import Row, compare

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
