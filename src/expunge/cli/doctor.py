"""`expunge doctor`: what this machine offers, and what of it is used."""

from __future__ import annotations

import os
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from expunge.api.prepare import pick_device
from expunge.cli import console
from expunge.core.version import __version__
from expunge.data.cache import cache_root
from expunge.training.precision import instruction_sets, machine, measure, native_bfloat16

PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "pandas", "pyarrow", "pillow", "safetensors", "pydantic")
EXTRAS = {
    "hub": "datasets", "requests": "sqlalchemy", "postgres": "psycopg", "service": "fastapi", "ray": "ray",
    "slurm": "submitit", "tune": "optuna", "tracking": "mlflow-skinny",
}  # fmt: skip


def doctor(as_json: bool) -> None:
    """Print what was examined, as lines or as JSON."""
    facts = examine()
    if as_json:
        console.print_json(facts)
        return
    grid = console.table("what", "value")
    grid.columns[0].no_wrap = True
    for name, value in facts.items():
        grid.add_row(name, _text(value))
    console.out().print(grid)
    for sentence in advice(facts):
        console.out().print(f"- {sentence}", soft_wrap=True)


def examine() -> dict[str, Any]:
    """Facts about this machine, JSON-ready. Takes about a second for the timed passes."""
    device = pick_device("auto")
    cache = cache_root()
    return {
        "expunge": __version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "extras": {extra: _version(package) for extra, package in EXTRAS.items()},
        "processor": machine(torch.device("cpu")),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "instruction sets": sorted(instruction_sets()),
        "device": machine(device) if device.type == "cuda" else "cpu",
        "bfloat16": _bfloat16(device),
        "free memory (GiB)": _free_memory(),
        "cache": _cache(cache),
    }


def advice(facts: dict[str, Any]) -> list[str]:
    """Sentences about what is not as it could be."""
    sentences = []
    if facts["threads"] < facts["cores"]:
        sentences.append(
            f"{facts['threads']} of {facts['cores']} cores are used by one process; set OMP_NUM_THREADS, or run "
            "studies with --jobs."
        )
    speedup = facts["bfloat16"].get("speed-up")
    if speedup is None:
        sentences.append("bfloat16 is not native here: `precision: auto` means float32.")
    elif speedup < 1.25:
        sentences.append(f"bfloat16 is only {speedup:g} times as fast in the timed network: auto means float32 there.")
    if not facts["cache"]["writable"]:
        sentences.append(
            f"the cache {facts['cache']['folder']} cannot be written; set EXPUNGE_CACHE to another folder."
        )
    missing = [extra for extra, version in facts["extras"].items() if version is None]
    if missing:
        sentences.append(f"not installed: {', '.join(missing)}; `pip install 'expunge[NAME]'` adds one.")
    return sentences


def _bfloat16(device: torch.device) -> dict[str, Any]:
    """Whether bfloat16 is native, and the measured speed-up for training a small convolutional network."""
    if not native_bfloat16(device):
        return {"native": False}
    layers: list[nn.Module] = []
    for width_in, width in ((3, 32), (32, 64), (64, 64)):
        layers += [nn.Conv2d(width_in, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    sample = torch.rand(32, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(device)
    decision, seconds = measure(network, sample, 10, device)
    if len(seconds) < 2:
        return {"native": True, "network": "too fast to tell"}
    return {"native": True, "speed-up": round(seconds["float32"] / seconds["bfloat16"], 2), "auto takes": decision}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _free_memory() -> float | None:
    """Memory that programs can still take, in GiB; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        kib = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return None
    return round(kib / 1024**2, 1)


def _cache(folder: Path) -> dict[str, Any]:
    """Where the cache is, whether it can be written, its size, and the free space of its disk."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
    return {
        "folder": str(folder),
        "writable": os.access(existing, os.W_OK),
        "size (MiB)": round(size / 1024**2, 1),
        "free disk (GiB)": round(shutil.disk_usage(existing).free / 1024**3, 1),
    }


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    if value is None or isinstance(value, bool):
        return {None: "-", True: "yes", False: "no"}[value]
    return str(value)
