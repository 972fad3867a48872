#!/usr/bin/env python3
"""Set up `.venv` and run a job: dev.py setup|demo|test|test-all|lint|format|docs|bench. Standard library only."""

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
# Two workers: each pays torch's import once, and the tests' own workers want cores, too.
TESTS = [PYTHON, "-m", "pytest", "-n", str(min(2, os.cpu_count() or 1))]


def say(text: str) -> None:
    print(f"== {text}", flush=True)


def stop(text: str) -> None:
    sys.exit(f"dev.py: {text}")


def run(command: list[str]) -> bool:
    return subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def fingerprint() -> str:
    parts = [(ROOT / name).read_bytes() for name in ("pyproject.toml", "constraints.txt")]
    return hashlib.sha256(b"".join(parts) + sys.version.encode() + CPU_TORCH.encode()).hexdigest()


def usable() -> bool:
    """Whether `.venv` has this Python and a pip; without Debian's python3-venv, half an environment is left behind."""
    if not Path(PYTHON).exists():
        return False
    probe = [PYTHON, "-c", "import pip, sys; print(*sys.version_info[:2])"]
    found = subprocess.run(probe, cwd=ROOT, check=False, capture_output=True, text=True)
    return found.stdout.split() == [str(part) for part in sys.version_info[:2]]


def make_venv() -> None:
    say("making .venv")
    if not run([sys.executable, "-m", "venv", "--clear", str(VENV)]):
        stop("making .venv failed; if the lines above miss `ensurepip`, install your system's package python3-venv.")


def setup() -> None:
    """Make or refresh the environment; nothing to do if neither pins nor Python changed."""
    if sys.version_info[:2] < (3, 11):  # noqa: UP036 - whoever has an older Python must get this sentence
        stop(f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}; try: make PYTHON=python3.11 test.")
    if STAMP.exists() and STAMP.read_text(encoding="utf-8") == fingerprint():
        return
    began = time.monotonic()
    if not usable():
        make_venv()
    pip = [PYTHON, "-m", "pip", "install", "--no-compile", "-qq", "--disable-pip-version-check", "--no-input"]
    if shutil.which("nvidia-smi") is None:
        say(f"installing {CPU_TORCH} for the CPU (the largest part, about a minute)")
        extra = ["--extra-index-url", os.environ[CPU_INDEX_OPTION]] if os.environ.get(CPU_INDEX_OPTION) else []
        if not run([*pip, *extra, CPU_TORCH]):
            stop("installing torch failed; the lines above say why. The next call tries again.")
    say("installing expunge and what it needs")
    if not run([*pip, "-c", "constraints.txt", "-e", ".[dev,hub,postgres,ray,service,slurm,tracking,tune]"]):
        stop("installing expunge failed; the lines above say why. The next call tries again.")
    STAMP.write_text(fingerprint(), encoding="utf-8")
    say(f"ready after {time.monotonic() - began:.0f} s")


def jobs() -> dict[str, list[list[str]]]:
    return {
        "setup": [],
        "demo": [[str(BIN / "expunge"), "demo", "--out", "out/demo"]],
        "lint": LINT,
        "test": [*LINT, [*TESTS, "-m", "not slow"]],
        "test-all": [*LINT, TESTS],
        "format": [[PYTHON, "-m", "ruff", "check", "--fix", "."], [PYTHON, "-m", "ruff", "format", "."]],
        "docs": [[PYTHON, "-m", "pytest", "src"]],  # every example in a docstring
        "bench": [[PYTHON, "-m", "benchmarks"]],
    }


def main() -> None:
    # Packages are installed uncompiled, for speed; without a cache every process would compile them anew (10 s).
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    name, extra = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("setup", [])
    if name not in jobs():
        stop(f"unknown job `{name}`; allowed: {', '.join(jobs())}.")
    setup()
    commands = jobs()[name]
    for command in commands:
        command = [*command, *extra] if command is commands[-1] else command  # `dev.py test -k scrub` is for pytest
        say(" ".join([Path(command[0]).name, *command[1:]]))
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        if code != 0:
            sys.exit(code)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        stop("interrupted; the next call goes on from here.")
