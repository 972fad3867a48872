"""One result folder: claimed before work begins, so that two different jobs never mix in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from expunge.api.result import write_text
from expunge.cli.jobs import Repair, Train, Unlearn
from expunge.core.errors import ExpungeError, UsageError
from expunge.core.identity import code_hash
from expunge.core.options import to_dict
from expunge.core.resume import state_files
from expunge.models.build import factory

SETTINGS, RESULT, WEIGHTS = "settings.json", "result.json", "model.safetensors"
STATE, UNLEARNING = "train.state", "unlearn.state"
_OURS = (
    *(RESULT, STATE, WEIGHTS, "initial.safetensors", "rows.json", "history.csv", "cells.json", "report.html"),
    *("labels.csv", "still_suspect.csv", "neighbours.csv", "repair.html", "repair.json"),
    *("unlearned.safetensors", "unlearned.json", "learn.state", "mend.json"),
)


def claim(job: Train | Unlearn | Repair) -> None:
    """Write the settings into `job.out`; the file can be given to `--config` again. `force` clears finished work away.

    Raises `UsageError` if the folder holds work with other settings, `ExpungeError` if it cannot be written.
    """
    settings = {key: value for key, value in to_dict(job).items() if key not in ("overwrite", "force", "yes")}
    before = read_json(job.out / SETTINGS)
    present = [name for name in _OURS if (job.out / name).exists()]
    present += [file.name for file in state_files(job.out / UNLEARNING)]
    changed = _difference(before, settings)
    if present and changed and not job.overwrite:
        raise UsageError(
            f"{job.out} holds work with other settings ({changed}); pass --overwrite to replace it, "
            "or choose another folder with --out."
        )
    if changed or job.force:
        for name in present:
            (job.out / name).unlink()
    if job.out.exists() and not job.out.is_dir():
        raise ExpungeError(f"{job.out} is a file; choose a folder with --out.")
    write_text(job.out / SETTINGS, json.dumps(settings, indent=2) + "\n")


def finished(job: Train | Unlearn | Repair) -> dict[str, Any] | None:
    """The record of a finished run in this folder, if there is one."""
    return read_json(job.out / RESULT) if (job.out / WEIGHTS).exists() else None


def user_code(model: str, method: object = None) -> str:
    """Hash of the user's own code that a job runs, a model's source and a plug-in method; empty where all is ours."""
    things = [factory(model)] if ":" in model else []
    if method is not None and not type(method).__module__.startswith("expunge."):
        things.append(type(method))
    return code_hash(*things) if things else ""


def check_code(folder: Path, record: dict[str, Any], now: str) -> None:
    """`UsageError` if the user's code was edited since the finished work in `folder` was done."""
    if record.get("code", now) != now:
        raise UsageError(
            f"the code of the model or method changed since {folder} was written; pass --force to do the work again, "
            "or choose another folder."
        )


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
