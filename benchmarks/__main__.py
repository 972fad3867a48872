"""`python -m benchmarks [topic ...] [--write]`: print the table; with --write also into benchmarks/RESULTS.md."""

from __future__ import annotations

import importlib
import platform
import sys
from pathlib import Path

from benchmarks.measure import table

LARGE = ("fisher", "ntk", "attack")
TOPICS = ("loops", "decoding", "startup", "laf", "fisher", "ntk", "attack")


def main() -> None:
    import torch

    cores = torch.get_num_threads()
    asked = [a for a in sys.argv[1:] if not a.startswith("--")]
    unknown = set(asked) - set(TOPICS)
    if unknown:
        sys.exit(f"unknown topic {', '.join(sorted(unknown))}; allowed: {', '.join(TOPICS)}")
    rows = []
    for topic in asked or TOPICS:
        # Two threads spin against each other in small loops; what is one large computation uses all cores.
        torch.set_num_threads(cores if topic in LARGE else 1)
        for row in importlib.import_module(f"benchmarks.{topic}").run():
            rows.append(row)
            print(table([row]).splitlines()[-1], flush=True)
    text = table(rows)
    print(f"\n{text}")
    if "--write" in sys.argv:
        where = f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}"
        where += f", one thread ({' and '.join(LARGE)}: {cores})"
        head = f"# Benchmarks\n\n`python -m benchmarks --write`, {where}. Medians of interleaved repeats."
        Path(__file__).with_name("RESULTS.md").write_text(f"{head}\n\n{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
