"""One result folder: claimed before work begins, so that two different jobs never mix in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from expunge.api.result import write_text
from expunge.cli.jobs import Repair, Train, Unlearn
from expunge.core.errors import ExpungeError, UsageError
from expunge.core.options import to_dict

SETTINGS, RESULT, STATE, WEIGHTS = "settings.json", "result.json", "train.state", "model.safetensors"
_OURS = (
    *(RESULT, STATE, WEIGHTS, "initial.safetensors", "rows.json", "history.csv", "cells.json", "report.html"),
    *("labels.csv", "still_suspect.csv", "neighbours.csv", "repair.html", "repair.json"),
    *("unlearned.safetensors", "unlearned.json", "learn.state", "mend.json"),
)


def claim(job: Train | Unlearn | Repair) -> None:
    """Write the settings into `job.out`; the file can be given to `--config` again.

    Raises `UsageError` if the folder holds work with other settings, `ExpungeError` if it cannot be written.
    """
    settings = {key: value for key, value in to_dict(job).items() if key not in ("overwrite", "yes")}
    before = read_json(job.out / SETTINGS)
    present = [name for name in _OURS if (job.out / name).exists()]
    changed = _difference(before, settings)
    if present and changed and not job.overwrite:
        raise UsageError(
            f"{job.out} holds work with other settings ({changed}); pass --overwrite to replace it, "
            "or choose another folder with --out."
        )
    if changed:
        for name in present:
            (job.out / name).unlink()
    if job.out.exists() and not job.out.is_dir():
        raise ExpungeError(f"{job.out} is a file; choose a folder with --out.")
    write_text(job.out / SETTINGS, json.dumps(settings, indent=2) + "\n")


def finished(job: Train | Unlearn | Repair) -> dict[str, Any] | None:
    """The record of a finished run in this folder, if there is one."""
    return read_json(job.out / RESULT) if (job.out / WEIGHTS).exists() else None


def read_json(path: Path) -> dict[str, Any] | None:
    """A mapping; None if the file is absent or damaged."""
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return loaded if isinstance(loaded, dict) else None


def _difference(before: dict[str, Any] | None, now: dict[str, Any]) -> str:
    """`seed: 0, now 1` for the first setting that differs; empty if none does."""
    if before is None:
        return "their settings are not known"
    for name in now:
        key = name
        if name not in before:  # a setting that came with a later version
            continue
        if key != "out" and before.get(key) != now[key]:
            old, new = before.get(key), now[key]
            if isinstance(old, dict) and isinstance(new, dict):
                key = next(k for k in [*new, *old] if old.get(k) != new.get(k))
                old, new = old.get(key), new.get(key)
            return f"`{key}` was {json.dumps(old)}, now {json.dumps(new)}"
    return ""
