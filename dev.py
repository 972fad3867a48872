#!/usr/bin/env python3
"""Set up `.venv` and run a job in it: python3 dev.py setup|demo|test|lint|format|bench. Standard library only."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = str(BIN / "python")
STAMP = VENV / "expunge.stamp"
CPU_TORCH = "torch==2.13.0"  # where there is no GPU; the plain release, or its +cpu build where an index has one
CPU_INDEX_OPTION = "EXPUNGE_TORCH_INDEX"  # an extra package index for CPU wheels, if your default one has none
LINT = [
    [PYTHON, "-m", "ruff", "check", "."],
    [PYTHON, "-m", "ruff", "format", "--check", "."],
    [PYTHON, "-m", "mypy"],
]


def say(text: str) -> None:
    print(f"== {text}", flush=True)


def stop(text: str) -> None:
    sys.exit(f"dev.py: {text}")


def run(command: list[str], what: str) -> None:
    if subprocess.run(command, cwd=ROOT, check=False).returncode != 0:
        stop(f"{what} failed; the lines above say why.")


def fingerprint() -> str:
    parts = [(ROOT / name).read_bytes() for name in ("pyproject.toml", "constraints.txt", "dev.py")]
    return hashlib.sha256(b"".join(parts) + sys.version.encode()).hexdigest()


def setup() -> None:
    """Make or refresh the environment; nothing to do if neither pins nor Python changed."""
    if sys.version_info[:2] < (3, 11):
        stop(f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}.")
    if STAMP.exists() and STAMP.read_text(encoding="utf-8") == fingerprint():
        return
    began = time.monotonic()
    if not Path(PYTHON).exists():
        say("making .venv")
        run([sys.executable, "-m", "venv", str(VENV)], "making .venv (is the venv module installed?)")
    pip = [PYTHON, "-m", "pip", "install", "--no-compile", "-qq", "--disable-pip-version-check"]
    if shutil.which("nvidia-smi") is None:
        say(f"installing {CPU_TORCH} for the CPU (the largest part, about a minute)")
        extra = ["--extra-index-url", os.environ[CPU_INDEX_OPTION]] if os.environ.get(CPU_INDEX_OPTION) else []
        run([*pip, *extra, CPU_TORCH], "installing torch")
    say("installing expunge and what it needs")
    run([*pip, "-c", "constraints.txt", "-e", ".[dev,hub]"], "installing expunge")
    STAMP.write_text(fingerprint(), encoding="utf-8")
    say(f"ready after {time.monotonic() - began:.0f} s")


def jobs() -> dict[str, list[list[str]]]:
    expunge = str(BIN / "expunge")
    return {
        "setup": [],
        "demo": [[expunge, "demo", "--out", "out/demo"]],
        "lint": LINT,
        "test": [*LINT, [PYTHON, "-m", "pytest"]],
        "format": [[PYTHON, "-m", "ruff", "check", "--fix", "."], [PYTHON, "-m", "ruff", "format", "."]],
        "bench": [[PYTHON, "-m", "benchmarks"]],
    }


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "setup"
    if name not in jobs():
        stop(f"unknown job `{name}`; allowed: {', '.join(jobs())}.")
    setup()
    for command in jobs()[name]:
        say(" ".join([Path(command[0]).name, *command[1:]]))
        code = subprocess.run([*command, *sys.argv[2:]], cwd=ROOT, check=False).returncode
        if code != 0:
            sys.exit(code)


if __name__ == "__main__":
    main()
