"""What `train` and `unlearn` return, and how it is saved: weights, facts, history."""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from expunge.api.effect import Effect
from expunge.core.errors import ExpungeError
from expunge.core.needs import Needs
from expunge.core.version import __version__
from expunge.models.checkpoint import save_weights, weights_hash


@dataclass(frozen=True, eq=False)
class Result:
    """model: the new model. history: one row per epoch. seconds: wall clock of the algorithm alone.

    status: "finished"; "budget" (time ran out); "reached", "limit", "already" (methods with a stopping rule);
    "stopped: utility" (the guard took it back, see `IterativeMethod`).
    needs: what the method was handed. stages: seconds per stage. notes: sentences a reader should see.
    effect: whether it forgot, did nothing or did harm (`unlearn` alone; see `api.effect`).
    facts: everything needed to do it again (method, options, seed, hashes, versions).
    """

    model: nn.Module
    history: list[dict[str, float]]
    seconds: float
    status: str
    needs: Needs
    facts: Mapping[str, Any]
    stages: Mapping[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    details: Mapping[str, Any] = field(default_factory=dict)
    effect: Effect | None = None

    def frame(self) -> pd.DataFrame:
        """The history as a table."""
        return pd.DataFrame(self.history)

    def record(self) -> dict[str, Any]:
        """JSON-ready: all but the weights."""
        return {
            "format": 1,
            **self.facts,
            "status": self.status,
            "seconds": self.seconds,
            "stages": dict(self.stages),
            "needs": {k: getattr(self.needs, k) for k in self.needs.__dataclass_fields__},
            "weights": weights_hash(self.model),
            "notes": list(self.notes),
            "details": dict(self.details),
            **({} if self.effect is None else {"effect": self.effect.record()}),
            "history": self.history,
        }

    def save(self, folder: str | Path) -> Path:
        """Write `model.safetensors`, `result.json` and `history.csv`; each appears whole or not at all."""
        target = Path(folder)
        try:
            target.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ExpungeError(f"cannot write to {target} ({error.strerror}); choose another folder.") from None
        save_weights(self.model, target / "model.safetensors")
        write_text(target / "history.csv", self.frame().to_csv(index=False))
        write_text(target / "result.json", json.dumps(self.record(), indent=2, default=str) + "\n")
        return target


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of the text in UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Atomic: a reader sees the old file or the new one, never half of it. `ExpungeError` if it cannot be written."""
    part = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        Path(part).chmod(0o644)
        Path(part).replace(path)
    except OSError as error:
        if part:
            Path(part).unlink(missing_ok=True)
        advice = "free some space or choose another folder"
        raise ExpungeError(f"cannot write {path} ({error.strerror}); {advice}.") from None


def versions() -> dict[str, str]:
    """What a reader needs to reproduce a number on the same kind of machine."""
    return {
        "expunge": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": str(torch.get_num_threads()),
    }
