"""`python -m benchmarks [topic ...] [--write]`: print the table; with --write also into benchmarks/RESULTS.md.

Topics that are not named keep their rows: `results.json` holds what was measured last, and where.
"""

from __future__ import annotations

import importlib
import json
import platform
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks.measure import Row, table

LARGE = ("fisher", "ntk", "attack")
TOPICS = ("loops", "decoding", "startup", "studies", "laf", "fisher", "ntk", "attack", "audit")
KEPT = Path(__file__).with_name("results.json")


def main() -> None:
    import torch

    cores = torch.get_num_threads()
    asked = [a for a in sys.argv[1:] if not a.startswith("--")]
    unknown = set(asked) - set(TOPICS)
    if unknown:
        sys.exit(f"unknown topic {', '.join(sorted(unknown))}; allowed: {', '.join(TOPICS)}")
    found: dict[str, list[Row]] = {}
    for topic in asked or TOPICS:
        # Two threads spin against each other in small loops; what is one large computation uses all cores.
        torch.set_num_threads(cores if topic in LARGE else 1)
        found[topic] = []
        for row in importlib.import_module(f"benchmarks.{topic}").run():
            found[topic].append(row)
            print(table([row]).splitlines()[-1], flush=True)
    print(f"\n{table([row for rows in found.values() for row in rows])}")
    if "--write" in sys.argv:
        write(found, cores)


def write(found: dict[str, list[Row]], cores: int) -> None:
    import torch

    kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
    for topic, rows in found.items():
        threads = f"{cores} threads" if topic in LARGE and cores > 1 else "one thread"
        where = f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}, {threads}"
        kept[topic] = {"where": where, "rows": [asdict(row) for row in rows]}
    KEPT.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    parts = [
        "# Benchmarks\n\n`python -m benchmarks --write`. Ratios of medians over interleaved repeats, in one process."
    ]
    for topic in TOPICS:
        if topic in kept:
            rows = [Row(**row) for row in kept[topic]["rows"]]
            parts.append(
                f"## {topic}\n\n`python -m benchmarks {topic} --write`; {kept[topic]['where']}.\n\n{table(rows)}"
            )
    Path(__file__).with_name("RESULTS.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
