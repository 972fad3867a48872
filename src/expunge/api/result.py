"""What `train` and `unlearn` return: a trained model, and how it came about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from expunge.api.effect import Effect
from expunge.api.trained import TrainedModel
from expunge.core import display
from expunge.core.files import write_bytes, write_text
from expunge.core.needs import Needs
from expunge.core.version import versions
from expunge.data.split import Split
from expunge.scenarios.base import ForgetSplit


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Result(TrainedModel):
    """A trained model that `train` or `unlearn` made. `model` is new; `parent` and `train` say what it came from.

    Attributes:
        history: One row per epoch.
        seconds: Wall clock of the algorithm alone.
        status: "finished"; "budget" (time ran out); "reached", "limit", "already" (methods with a stopping rule);
            "stopped: utility" (the guard took it back, see `IterativeMethod`).
        needs: What the method was handed.
        stages: Seconds per stage.
        notes: Sentences a reader should see.
        effect: Whether it forgot, did nothing or did harm (`unlearn` alone; see `api.effect`).
        details: What the method reports about itself.
        forget: The samples that were forgotten; None after `train`.
        forgetting: The scenario's partition, where the forget set came from one.
    """

    history: list[dict[str, float]]
    seconds: float
    status: str
    needs: Needs
    stages: Mapping[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    details: Mapping[str, Any] = field(default_factory=dict)
    effect: Effect | None = None
    forget: Split | None = None
    forgetting: ForgetSplit | None = None

    @classmethod
    def load(cls, folder: str | Path, **known: Any) -> Result:
        """`expunge.load` of a folder that `train`, `unlearn` or `save` wrote.

        Args:
            folder: The folder.
            known: What the folder does not hold: `model`, `data`, `held_out`, `test`, `parent`, see `expunge.load`.

        Raises:
            CheckpointError: If the folder holds no result, or a damaged one.
        """
        from expunge.api.saved import load_result  # it makes results

        return load_result(folder, **known)

    def frame(self) -> pd.DataFrame:
        """The history as a table, one row per epoch."""
        return pd.DataFrame(self.history)

    def record(self) -> dict[str, Any]:
        """JSON-ready: all but the weights and the data."""
        return {
            **super().record(),
            "status": self.status,
            "seconds": self.seconds,
            "stages": dict(self.stages),
            "needs": {k: getattr(self.needs, k) for k in self.needs.__dataclass_fields__},
            "notes": list(self.notes),
            "details": dict(self.details),
            **({} if self.effect is None else {"effect": self.effect.record()}),
            "history": self.history,
        }

    def _write_more(self, folder: Path) -> None:
        write_text(folder / "history.csv", self.frame().to_csv(index=False))

    def _rows(self) -> dict[str, Any] | None:
        rows, origin = super()._rows(), self.origin
        if rows is not None and origin is not None and self.forget is not None:
            place = {position: row for row, position in enumerate(origin.index.tolist())}
            rows["forget"] = [place[position] for position in self.forget.index.tolist() if position in place]
        return rows

    def _title(self) -> str:
        method = self.facts.get("method")
        return super()._title() + (f", unlearned by {method}" if method else "")

    def _shown(self) -> list[tuple[str, str]]:
        epochs = display.counted(len(self.history), "epoch")
        last = self.history[-1].get("loss") if self.history else None
        loss = "" if last is None else f", last loss {last:.4g}"
        rows = super()._shown()
        if self.forget is not None:
            rows = [("forgotten", display.counted(len(self.forget), "sample")), ("still knows", rows[0][1]), *rows[1:]]
        if self.effect is not None:
            rows.insert(0, ("effect", self.effect.sentence))
        rows.append(("made in", f"{self.seconds:.1f} s, {epochs}{loss}; {self.status}"))
        if self.notes:
            more = f" (and {len(self.notes) - 1} more in .notes)" if len(self.notes) > 1 else ""
            rows.append(("note", self.notes[0] + more))
        return rows


__all__ = ["Result", "versions", "write_bytes", "write_text"]
