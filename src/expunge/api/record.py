"""The record of one finished (or failed) cell: what studies store, and all that reports read.

A cell is one (data, model, scenario, method, seeds). Records are plain JSON, so a report needs neither torch nor
the weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Annotated, Any, Literal, Required

import pydantic
import torch
from pydantic import Field
from typing_extensions import TypedDict

from expunge.api.evaluate import Scores
from expunge.core.needs import Needs
from expunge.core.registry import Card
from expunge.data.split import Split
from expunge.metrics.base import Direction, Evaluation, Unit, Value
from expunge.scenarios.base import ForgetSplit

SAMPLED_LOSSES = 1000  # per split and model: enough for a histogram, small enough for a page


@pydantic.with_config(extra="allow")
class _DataFacts(TypedDict, total=False):
    name: str
    classes: int
    class_names: list[str]
    train: int
    test: int
    validation: int
    note: str


@pydantic.with_config(extra="allow")
class _ScenarioFacts(TypedDict, total=False):
    label: str
    scenario: str
    options: dict[str, Any]
    seed: int
    forget: int
    retain: int


@pydantic.with_config(extra="allow")
class _MethodFacts(TypedDict, total=False):
    label: str
    name: str
    options: dict[str, Any]
    tags: list[str]
    cite: str


@pydantic.with_config(extra="allow")
class _ModelFacts(TypedDict, total=False):
    name: str
    parameters: int


@pydantic.with_config(extra="allow")
class _EffectFacts(TypedDict, total=False):
    label: str
    sentence: str
    numbers: dict[str, float | None]


@pydantic.with_config(extra="allow")
class _Score(TypedDict, total=False):
    metric: Required[str]
    value: Required[float | None]
    low: float | None
    high: float | None
    unit: Required[str]
    direction: str
    group: Required[str]
    note: str


@pydantic.with_config(extra="allow")
class _Curves(TypedDict, total=False):
    losses: dict[str, list[float]]
    confusion: dict[str, list[list[int]]]
    projection: dict[str, Any]


@pydantic.with_config(extra="allow")
class _Provenance(TypedDict, total=False):
    versions: dict[str, str | None]
    hardware: str


def _checked(kind: type) -> pydantic.AfterValidator:
    """Values as `kind` states them, kept as they are: a record from elsewhere may be damaged, ours need no copy."""
    adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(kind)

    def check(value: Any) -> Any:
        adapter.validate_python(value)
        return value

    return pydantic.AfterValidator(check)


def _fields_of_needs(given: dict[str, Any]) -> dict[str, Any]:
    for name in given:
        if name not in {field.name for field in fields(Needs)}:
            raise ValueError(f"`{name}` is no need of a method")
    return given


def _square(curves: dict[str, Any]) -> dict[str, Any]:
    for split, counts in curves.get("confusion", {}).items():
        if any(len(row) != len(counts) for row in counts):
            raise ValueError(f"the confusion counts of {split} are not class x class")
    return curves


class CellRecord(pydantic.BaseModel):
    """Everything a reader can ask of one cell."""

    model_config = pydantic.ConfigDict(extra="forbid")

    format: int = 1
    id: str = Field(description="content address: equal settings, equal id")
    study: str = ""
    data: Annotated[dict[str, Any], _checked(_DataFacts)] = Field(
        default_factory=dict, description="name, classes, train, test, validation, note"
    )
    model: Annotated[dict[str, Any], _checked(_ModelFacts)] = Field(
        default_factory=dict, description="name, parameters"
    )
    scenario: Annotated[dict[str, Any], _checked(_ScenarioFacts)] = Field(
        default_factory=dict, description="label, scenario, options, seed, forget, retain"
    )
    method: Annotated[dict[str, Any], _checked(_MethodFacts)] = Field(
        default_factory=dict, description="label, name, options, tags, cite"
    )
    seeds: dict[str, int] = Field(default_factory=dict, description="data, train, unlearn, evaluate")
    state: Literal["done", "failed"] = "done"
    error: str = Field("", description="one sentence, if failed")
    status: str = Field("finished", description="how the method ended")
    seconds: float | None = None
    stages: dict[str, float] = Field(default_factory=dict)
    needs: Annotated[dict[str, Any], _checked(Needs), pydantic.AfterValidator(_fields_of_needs)] = Field(
        default_factory=dict, description="fields of `Needs`"
    )
    notes: list[str] = Field(default_factory=list)
    details: dict[str, Any] = Field(default_factory=dict)
    history: list[dict[str, float]] = Field(default_factory=list)
    effect: Annotated[dict[str, Any] | None, _checked(_EffectFacts | None)] = Field(
        None, description="`Effect.record()`; none where it was not asked for"
    )
    scores: Annotated[list[dict[str, Any]], _checked(list[_Score])] = Field(
        default_factory=list,
        description="rows: metric, group, value, low, high, unit, direction, note; value null: the note says why",
    )
    curves: Annotated[dict[str, Any], _checked(_Curves), pydantic.AfterValidator(_square)] = Field(
        default_factory=dict,
        description="losses: split -> sampled losses; confusion: split -> class x class counts (true, predicted); "
        "projection: split -> rows of two components and the class",
    )
    provenance: Annotated[dict[str, Any], _checked(_Provenance)] = Field(
        default_factory=dict, description="versions, hashes, hardware, peak memory"
    )

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
