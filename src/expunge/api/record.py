"""The record of one finished (or failed) cell: what studies store, and all that reports read.

A cell is one (data, model, scenario, method, seeds). Records are plain JSON, so a report needs neither torch nor
the weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal

import pydantic
import torch
from pydantic import Field

from expunge.api.evaluate import Scores
from expunge.core.registry import Card
from expunge.data.split import Split
from expunge.metrics.base import Direction, Evaluation, Unit, Value
from expunge.scenarios.base import ForgetSplit

SAMPLED_LOSSES = 1000  # per split and model: enough for a histogram, small enough for a page


class CellRecord(pydantic.BaseModel):
    """Everything a reader can ask of one cell."""

    model_config = pydantic.ConfigDict(extra="forbid")

    format: int = 1
    id: str = Field(description="content address: equal settings, equal id")
    study: str = ""
    data: dict[str, Any] = Field(default_factory=dict, description="name, classes, train, test, validation, note")
    model: dict[str, Any] = Field(default_factory=dict, description="name, parameters")
    scenario: dict[str, Any] = Field(default_factory=dict, description="label, scenario, options, seed, forget, retain")
    method: dict[str, Any] = Field(default_factory=dict, description="label, name, options, tags, cite")
    seeds: dict[str, int] = Field(default_factory=dict, description="data, train, unlearn, evaluate")
    state: Literal["done", "failed"] = "done"
    error: str = Field("", description="one sentence, if failed")
    status: str = Field("finished", description="how the method ended")
    seconds: float | None = None
    stages: dict[str, float] = Field(default_factory=dict)
    needs: dict[str, Any] = Field(default_factory=dict, description="fields of `Needs`")
    notes: list[str] = Field(default_factory=list)
    details: dict[str, Any] = Field(default_factory=dict)
    history: list[dict[str, float]] = Field(default_factory=list)
    effect: dict[str, Any] | None = Field(None, description="`Effect.record()`; none where it was not asked for")
    scores: list[dict[str, Any]] = Field(
        default_factory=list,
        description="rows: metric, group, value, low, high, unit, direction, note; value null: the note says why",
    )
    curves: dict[str, Any] = Field(
        default_factory=dict,
        description="losses: split -> sampled losses; confusion: split -> class x class counts (true, predicted); "
        "projection: split -> rows of two components and the class",
    )
    provenance: dict[str, Any] = Field(default_factory=dict, description="versions, hashes, hardware, peak memory")

    @pydantic.field_validator("scores")
    @classmethod
    def _null_for_nan(cls, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """JSON has no NaN."""
        return [{**row, "value": None} if _is_nan(row.get("value")) else row for row in rows]

    @property
    def measured(self) -> list[dict[str, Any]]:
        """The rows of `scores` that have a value."""
        return [row for row in self.scores if row["value"] is not None]


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def data_facts(name: str, forgetting: ForgetSplit, test: Split | None, validation: Split | None) -> dict[str, Any]:
    """`CellRecord.data`: name, classes and sizes of what a model was trained and measured on."""
    sizes = {"test": test, "validation": validation}
    return {
        "name": name,
        "classes": forgetting.train.num_classes,
        "class_names": list(forgetting.train.store.classes),
        "train": len(forgetting.train),
        **{part: 0 if split is None else len(split) for part, split in sizes.items()},
    }


def method_facts(label: str, card: Card, options: Mapping[str, Any]) -> dict[str, Any]:
    """`CellRecord.method`: how tables name a method, its options, and whom to cite."""
    cite = f"{card.paper.cite}, {card.paper.url}" if card.paper else ""
    return {"label": label, "name": card.name, "options": dict(options), "tags": list(card.tags), "cite": cite}


def score_rows(scores: Scores, model: str) -> list[dict[str, Any]]:
    """JSON-ready rows of one model."""
    return [asdict(value) for value in scores.values[model]]


_REQUEST_UNITS: dict[str, tuple[Unit, Direction]] = {"seconds": ("seconds", "lower"), "drift": ("ratio", "lower")}


def request_rows(details: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a stream measured after each request, as rows of metrics whose group is the number of the request."""
    rows = []
    for request in details.get("requests", ()):
        for name, value in request.items():
            if name in ("request", "samples") or not math.isfinite(value):
                continue
            unit, direction = _REQUEST_UNITS.get(name, ("fraction", "reference"))
            found = Value(f"request_{name}", float(value), unit, direction, group=f"{int(request['request'])}")
            rows.append(asdict(found))
    return rows


def curves(evaluation: Evaluation, model: str) -> dict[str, Any]:
    """What the plots of a report need of one model: sampled losses and confusion counts per split."""
    losses: dict[str, list[float]] = {}
    confusion: dict[str, list[list[int]]] = {}
    for split in evaluation.present(("forget", "test")):
        values = evaluation.losses(model, split).sort().values
        # Evenly spaced order statistics keep the shape of the distribution and are the same on every run.
        at = torch.linspace(0, len(values) - 1, min(SAMPLED_LOSSES, len(values))).round().long()
        losses[split] = [round(v, 5) for v in values[at].tolist()]
        logits = evaluation.logits(model, split)
        counts = confusion_counts(evaluation.labels(split), logits.argmax(1), logits.shape[1])
        confusion[split] = counts.tolist()
    return {"losses": losses, "confusion": confusion}


def confusion_counts(truth: torch.Tensor, predicted: torch.Tensor, classes: int) -> torch.Tensor:
    """(classes, classes) long: rows true, columns predicted."""
    return torch.bincount(truth * classes + predicted, minlength=classes * classes).view(classes, classes)


def cell_from_result(record: Mapping[str, Any], **parts: Any) -> CellRecord:
    """A cell from `Result.record()` and the parts that a result does not know (data, model, scenario, scores...)."""
    return CellRecord(
        status=str(record["status"]),
        seconds=float(record["seconds"]),
        stages=dict(record["stages"]),
        needs=dict(record["needs"]),
        notes=list(record["notes"]),
        details=dict(record["details"]),
        history=list(record["history"]),
        effect=record.get("effect"),
        **parts,
    )
