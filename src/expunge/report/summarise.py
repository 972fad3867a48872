"""From records to the numbers of a page: mean and spread over seeds, per scenario and method. No drawing here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from expunge.api.record import CellRecord
from expunge.core.needs import Needs

REFERENCE, ORIGINAL = "retrain", "original"


@dataclass(frozen=True)
class Column:
    """A column of the main table. explain: one sentence for a reader who meets it for the first time.

    interval: show the 95 % interval over samples, too, where the metric has one.
    """

    metric: str
    title: str
    explain: str
    percent: bool = True
    digits: int = 1
    interval: bool = False


COLUMNS = (
    Column("forget_accuracy", "forget", "Accuracy on the samples to forget; right is what the retrained model has."),
    Column("forget_true_accuracy", "forget, true labels", "Agreement with the true labels of samples whose labels were "
           "replaced by wrong ones (“forget” counts agreement with the wrong ones); close to retrained is right."),
    Column("forget_augmented_accuracy", "forget, augmented", "Accuracy on randomly cropped and flipped samples to "
           "forget, which is how the LAF authors score CIFAR-10 and SVHN."),
    Column("retain_accuracy", "retain", "Accuracy on the training samples that stay; higher is better."),
    Column("retain_augmented_accuracy", "retain, augmented", "The same on training samples that stay."),
    Column("test_accuracy", "test", "Accuracy on unseen samples of all classes; close to retrained is right."),
    Column("test_retained_accuracy", "test, kept classes", "Accuracy on unseen samples of the classes that stay."),
    Column("test_removed_accuracy", "test, removed classes", "Accuracy on unseen samples of the removed class."),
    Column("test_ic_error", "IC-ERR", "Error on unseen samples of the two classes whose labels were swapped; lower is "
           "better."),
    Column("test_fgt_error", "FGT-ERR", "Share of these that are taken for the other of the two classes; lower is "
           "better."),
    Column("average_gap", "gap", "Mean distance to the retrained model's accuracies on forget, retain and test; lower "
           "is better."),
    Column("mia_auc", "attack AUC", "How well the loss alone tells forgotten from unseen samples: 0.5 means it cannot, "
           "above that they still look known, far below they stick out as unusually hard.", percent=False, digits=2),
    Column("mia_accuracy", "basic attack", "Accuracy of the published membership attack on losses, in percent: 50 is "
           "guessing; noisy with few samples."),
    Column("seconds", "seconds", "Time of unlearning itself, without loading and measuring.", percent=False),
    Column("scale_up", "speed-up", "How many times faster than training again.", percent=False),
    Column("asr", "ASR", "Accuracy of the LAF authors' attack on sorted outputs, in percent: right where it calls "
           "forgotten samples known and unseen ones unknown. Close to retrained is right; guessing gives the neutral "
           "value beside it, not 50."),
    Column("asr_neutral", "ASR, neutral", "What that attack scores when it calls every sample known."),
    Column("asr_balanced", "ASR, balanced", "The same attack with equal sides and classes, cross-validated: 50 is "
           "guessing. In brackets its 95 % interval over samples, mean over seeds.", interval=True),
    Column("asr_auc", "ASR, AUC", "How well the balanced attack tells forgotten from unseen samples: 0.5 means it "
           "cannot.", percent=False, digits=2, interval=True),
    Column("test_cka", "CKA", "Likeness (linear CKA) of the representations of unseen samples to the retrained "
           "model's: 1 is equal up to rotation and scale.", percent=False, digits=3),
    Column("relearn_time", "relearn", "Epochs until the forget set is known again, as the original knew it.",
           percent=False),
)  # fmt: skip


@dataclass(frozen=True)
class MetricSummary:
    """A statistic over seeds. spread: sample standard deviation; for one seed, half the interval over samples.

    low, high: ends of the interval over samples, mean over seeds; None where a seed has none.
    """

    mean: float
    spread: float | None
    count: int
    low: float | None = None
    high: float | None = None

    def text(self, column: Column) -> str:
        """The mean with its spread, in the format of a column."""
        factor = 100.0 if column.percent else 1.0
        digits_text = f"{factor * self.mean:.{column.digits}f}"
        interval = ""
        if column.interval and self.low is not None and self.high is not None:
            interval = f" [{factor * self.low:.{column.digits}f}, {factor * self.high:.{column.digits}f}]"
        if self.spread is None or not math.isfinite(self.spread) or (interval and self.count == 1):
            return digits_text + interval  # one seed's spread is half of that interval
        return f"{digits_text} ± {factor * self.spread:.{column.digits}f}{interval}"


@dataclass(frozen=True)
class MethodRow:
    """One method in one scenario."""

    label: str
    name: str
    cells: list[CellRecord]
    failed: list[CellRecord]
    numbers: dict[str, MetricSummary] = field(default_factory=dict)

    @property
    def is_reference(self) -> bool:
        """Whether this is the retrained model."""
        return self.name == REFERENCE

    @property
    def badges(self) -> list[str]:
        """Facts about access and exactness, from what the method was really handed."""
        if not self.cells:
            return []
        needs = Needs(**self.cells[0].needs)
        tags = self.cells[0].method.get("tags", [])
        badges = ["exact"] if "exact" in tags else []
        if self.name not in (REFERENCE, ORIGINAL):
            badges += ["label-free"] if needs.label_free else []
            badges += ["forget set only"] if needs.forget_set_only and needs.forget != "none" else []
        return badges


@dataclass(frozen=True)
class ScenarioBlock:
    """Everything a page says about one scenario."""

    label: str
    facts: dict[str, Any]
    rows: list[MethodRow]

    def row(self, name: str) -> MethodRow | None:
        """The row of a method with results, by its name."""
        return next((row for row in self.rows if row.name == name and row.cells), None)

    @property
    def columns(self) -> list[Column]:
        """The columns for which any row has a value."""
        return [c for c in COLUMNS if any(c.metric in row.numbers for row in self.rows)]

    @property
    def seeds(self) -> int:
        """Number of distinct seeds."""
        return len({tuple(cell.seeds.items()) for row in self.rows for cell in (*row.cells, *row.failed)})


def blocks(cells: Sequence[CellRecord]) -> list[ScenarioBlock]:
    """Scenarios in their order; within one, the original, the retrained reference, then the methods."""
    result = []
    for label in dict.fromkeys(str(cell.scenario.get("label", "")) for cell in cells):
        scenario_cells = [cell for cell in cells if str(cell.scenario.get("label", "")) == label]
        rows = []
        for method in dict.fromkeys(str(cell.method.get("label", "")) for cell in scenario_cells):
            method_cells = [cell for cell in scenario_cells if str(cell.method.get("label", "")) == method]
            done = [c for c in method_cells if c.state == "done"]
            failed = [c for c in method_cells if c.state != "done"]
            name = str((done or method_cells)[0].method.get("name", method))
            rows.append(MethodRow(method, name, done, failed, statistics(done)))
        rows.sort(key=lambda row: {ORIGINAL: 0, REFERENCE: 1}.get(row.name, 2))
        facts = next((c.scenario for c in scenario_cells if c.state == "done"), scenario_cells[0].scenario)
        result.append(ScenarioBlock(label, facts, rows))
    return result


def statistics(cells: Sequence[CellRecord]) -> dict[str, MetricSummary]:
    """metric -> statistic over the seeds that finished; grouped values (per class) are left to `per_class`."""
    values: dict[str, list[dict[str, Any]]] = {}
    for cell in cells:
        for row in cell.measured:
            if not row["group"]:
                values.setdefault(row["metric"], []).append(row)
    return {metric: _number(rows) for metric, rows in values.items()}


def _number(rows: list[dict[str, Any]]) -> MetricSummary:
    numbers = np.array([row["value"] for row in rows], dtype=float)
    low, high = (_mean_end(rows, end) for end in ("low", "high"))
    if len(numbers) > 1:
        return MetricSummary(float(numbers.mean()), float(numbers.std(ddof=1)), len(numbers), low, high)
    half = (high - low) / 2 if low is not None and high is not None else None
    return MetricSummary(float(numbers[0]), half, 1, low, high)


def _mean_end(rows: list[dict[str, Any]], end: str) -> float | None:
    ends = [float(row[end]) for row in rows if row.get(end) is not None]
    return float(np.mean(ends)) if len(ends) == len(rows) else None


def stages(row: MethodRow) -> dict[str, float]:
    """Stage -> seconds, mean over the seeds that timed it."""
    values: dict[str, list[float]] = {}
    for cell in row.cells:
        for name, seconds in cell.stages.items():
            values.setdefault(name, []).append(seconds)
    return {name: float(np.mean(seconds)) for name, seconds in values.items()}


def per_class(row: MethodRow) -> dict[str, float]:
    """class name -> mean test accuracy over seeds."""
    return grouped(row, "class_accuracy")


def losses(row: MethodRow, split: str) -> np.ndarray:
    """Sampled losses of all seeds together."""
    parts = [np.asarray(cell.curves.get("losses", {}).get(split, ()), dtype=float) for cell in row.cells]
    return np.concatenate(parts) if parts else np.empty(0)


def grouped(row: MethodRow, metric: str) -> dict[str, float]:
    """group -> mean over seeds of a metric that has groups (requests, blocks), in their order."""
    values: dict[str, list[float]] = {}
    for cell in row.cells:
        for score in cell.measured:
            if score["metric"] == metric:
                values.setdefault(score["group"], []).append(score["value"])
    return {name: float(np.mean(numbers)) for name, numbers in values.items()}


def confusion(row: MethodRow, split: str) -> np.ndarray | None:
    """Counts (true, predicted), summed over seeds."""
    parts = [np.asarray(c.curves["confusion"][split]) for c in row.cells if split in c.curves.get("confusion", {})]
    return np.sum(parts, axis=0) if parts else None


def history(row: MethodRow) -> dict[str, list[float]]:
    """Curve name -> mean over seeds per epoch, only epochs that all seeds reached."""
    histories = [cell.history for cell in row.cells if cell.history]
    if not histories:
        return {}
    length = min(len(rows) for rows in histories)
    names = [n for n in histories[0][0] if n not in ("epoch", "seconds", "lr")]
    names += [n for n in histories[0][-1] if n not in names and n not in ("epoch", "seconds", "lr")]
    return {n: [float(np.mean([rows[e].get(n, np.nan) for rows in histories])) for e in range(length)] for n in names}
