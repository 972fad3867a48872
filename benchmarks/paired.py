"""Two source trees beside each other: CPU seconds of a training and of three methods, in turns, as ratios.

python -m benchmarks.paired OTHER/src [--repeats 3] [--size 2000]

Each repeat starts a process per tree, in alternating order, with one thread; CPU time is what is compared, since other
work on the machine lengthens the clock more. The task is the package's own `cnn` on random images of 28 x 28.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean
from typing import Any

METHODS: dict[str, dict[str, Any]] = {
    "scrub": {"epochs": 3},
    "laf": {"epochs": 2, "vae_epochs": 2},
    "l2ul": {"limit": 3, "iterations": 20, "examples": 5},
}
HERE = Path(__file__).parents[1] / "src"


def measure(size: int) -> dict[str, float]:
    """CPU seconds per piece of work, of the tree that is on the path."""
    import torch

    import expunge
    from expunge.models.build import build_model

    torch.set_num_threads(1)
    random = torch.Generator().manual_seed(0)
    x, y = torch.rand(size, 1, 28, 28, generator=random), torch.arange(size) % 10
    x += y.view(-1, 1, 1, 1) / 10
    recipe = {"epochs": 2, "batch_size": 64, "lr": 0.01}
    gone = torch.arange(size) < 40
    data: dict[str, Any] = {"forget": (x[gone], y[gone]), "retain": (x[~gone], y[~gone]), "device": "cpu"}
    model = build_model("cnn", num_classes=10, input_shape=(1, 28, 28), seed=0)
    seconds = {}
    expunge.train(model, (x[:128], y[:128]), recipe={**recipe, "epochs": 1}, device="cpu", precision="float32")
    began = time.process_time()
    trained = expunge.train(model, (x, y), recipe=recipe, device="cpu", precision="float32")
    seconds["train"] = time.process_time() - began
    for name, options in METHODS.items():
        began = time.process_time()
        expunge.unlearn(trained.model, method=name, precision="float32", **data, **options)
        seconds[name] = time.process_time() - began
    return seconds


def run(source: Path, size: int) -> dict[str, float]:
    """`measure` in a process that imports the package from `source`."""
    path = os.pathsep.join([str(source), str(Path(__file__).parents[1])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "benchmarks.paired", "--one", "--size", str(size)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("other", nargs="?", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--size", type=int, default=2000)
    parser.add_argument("--one", action="store_true", help="measure this tree alone, as JSON")
    given = parser.parse_args()
    if given.one or given.other is None:
        print(json.dumps(measure(given.size)))
        return
    ratios: dict[str, list[float]] = {}
    for repeat in range(given.repeats):
        trees = [HERE, given.other.absolute()]
        both = {tree: run(tree, given.size) for tree in (trees if repeat % 2 else trees[::-1])}
        for name, seconds in both[HERE].items():
            ratios.setdefault(name, []).append(seconds / both[given.other.absolute()][name])
            print(f"{repeat + 1} {name:6} {seconds:6.2f} s here, {both[given.other.absolute()][name]:6.2f} s there")
    for name, values in ratios.items():
        print(f"{name:6} {mean(values):.3f} ({min(values):.3f} .. {max(values):.3f})")


if __name__ == "__main__":
    main()
