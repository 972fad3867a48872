"""Measure models side by side: every metric from shared predictions, one tidy table out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
from torch import Tensor, nn

from expunge.api.prepare import as_classifier, as_splits, check_disjoint, check_fit, pick_device
from expunge.api.result import Result
from expunge.api.saved import as_trained
from expunge.api.selection import known_splits, select
from expunge.core import display
from expunge.core.distributed import current
from expunge.core.errors import UsageError
from expunge.core.options import build
from expunge.metrics import METRICS
from expunge.metrics.base import Evaluation, Metric, Value, check_applies, default_metrics, measure

LINES = 7  # metrics that `repr` shows
COLUMNS = ["model", "metric", "group", "value", "low", "high", "unit", "direction", "note"]


@dataclass(frozen=True, eq=False, repr=False)
class Scores:
    """Values per model. evaluation: the shared predictions they were computed from."""

    values: Mapping[str, list[Value]]
    evaluation: Evaluation

    def __repr__(self) -> str:
        return display.as_text(*self._shown())

    def _repr_html_(self) -> str:
        return display.as_html(*self._shown())

    def _shown(self) -> tuple[str, list[tuple[str, str]]]:
        """Metrics by models, without those of single classes: as many as fit, as a title and lines."""
        wide = self.table()
        width = max((len(str(model)) for model in wide.index), default=0)
        rows = [
            (
                str(metric),
                "  ".join(f"{'-' if math.isnan(value) else f'{value:.4g}':>{width}}" for value in wide[metric]),
            )
            for metric in wide.columns
        ]
        head = ("metric", "  ".join(f"{model:>{width}}" for model in wide.index))
        more = [] if len(rows) <= LINES else [("...", f"{len(rows) - LINES} more in .table(), .frame()")]
        samples = ", ".join(f"{name} {len(split):,}" for name, split in self.evaluation.splits.items())
        return f"Scores of {display.counted(len(wide), 'model')} ({samples} samples)", [head, *rows[:LINES], *more]

    @property
    def notes(self) -> list[str]:
        """Why values that were asked for are missing, one sentence each."""
        return [
            f"{model}: {value.metric}{f' ({value.group})' if value.group else ''} has no value: {value.note}."
            for model, values in self.values.items()
            for value in values
            if value.note
        ]

    def frame(self) -> pd.DataFrame:
        """Tidy: one row per (model, metric, group); low and high are a 95 % interval, NaN where there is none.

        A metric that was asked for and has no value is a row with NaN and the reason in `note`.
        """
        rows = [{"model": model, **asdict(value)} for model, values in self.values.items() for value in values]
        frame = pd.DataFrame(rows, columns=COLUMNS)
        return frame.astype({"value": float, "low": float, "high": float})

    def value(self, model: str, metric: str, group: str = "") -> float:
        """One number; `UsageError` if it was not measured."""
        for candidate in self.values.get(model, ()):
            if (candidate.metric, candidate.group) == (metric, group):
                return candidate.value
        raise UsageError(f"`{metric}` of `{model}` was not measured.")

    def table(self) -> pd.DataFrame:
        """Models by metrics, for reading; grouped values (per class) left out."""
        frame = self.frame()
        wide = frame[frame["group"] == ""].pivot_table(
            index="model", columns="metric", values="value", sort=False, dropna=False
        )
        return wide.reindex([m for m in self.values if m in wide.index])


def evaluate(
    models: Any,
    *,
    forget: Any = None,
    retain: Any = None,
    test: Any = None,
    validation: Any = None,
    metrics: Iterable[str | Metric] | None = None,
    seconds: Mapping[str, float] | None = None,
    sample: Tensor | None = None,
    seed: int = 0,
    device: str = "auto",
) -> Scores:
    """Score models on the same data; predictions are computed once per (model, split).

    Args:
        models: What `unlearn` returned (measured beside the model before it), or a mapping of names to modules,
            trained models, results (their seconds are then reported too) or folders; name the reference "retrained",
            the model before unlearning "original".
        forget: The forget set, as a split, a map-style data set or (X, y), or as `unlearn` takes it. This and the
            other sets default to what the models know.
        retain: The retain set.
        test: Test data.
        validation: Held-out data.
        metrics: Names or instances; default: every registered one whose inputs are given, without costly ones
            (`relearn`).
        seconds: Running times by model, where the models do not know them.
        sample: `sample` of the scenario's split, for the published attack `asr`: the retained samples it learns from.
        seed: Of attacks and intervals, >= 0.
        device: `auto` (the first GPU, else the CPU), `cpu`, `cuda` or `cuda:N`.

    Returns:
        Values per model; `.table()` to read, `.frame()` as a tidy table with units and intervals.

    Raises:
        UsageError: If there is nothing to measure, a metric is unknown, or its inputs are missing.
        DataError: If data and models do not fit together, or forgotten samples are in another split.
    """
    named = _named(models)
    target = pick_device(device)
    trained = {name: as_trained(model, f"model `{name}`") for name, model in named.items()}
    unlearned = [model for model in trained.values() if isinstance(model, Result) and model.forget is not None]
    known = {"forget": forget, "retain": retain, "test": test, "validation": validation}
    if forget is not None and trained:
        selected = select(next(iter(unlearned or trained.values())).root, forget, retain)
        known |= {"forget": selected.forget, "retain": selected.retain}
    splits = as_splits(known_splits(list(trained.values()), known))
    if not splits:
        raise UsageError("no data to evaluate on: pass at least one of forget, retain, test.")
    check_disjoint(splits)
    modules = {name: as_classifier(model.model, splits, target)[0] for name, model in trained.items()}
    for module in modules.values():
        check_fit(module, splits, target)
    measured = {name: model.seconds for name, model in trained.items() if isinstance(model, Result)}
    if sample is None and forget is None:
        sample = next((model.forgetting.sample for model in unlearned if model.forgetting is not None), None)
    known_seconds = {**measured, **(seconds or {})}
    evaluation = Evaluation(
        modules, splits, device=target, seed=seed, seconds=known_seconds, world=current(), sample=sample
    )
    chosen = default_metrics() if metrics is None else [_metric(m) for m in metrics]
    asked = () if metrics is None else chosen
    values = {name: [value for row in measure(evaluation, chosen, name, asked) for value in row] for name in modules}
    return Scores(values, evaluation)


def _named(models: Any) -> dict[str, Any]:
    """Models by name; a single result stands beside the model it was made from."""
    if isinstance(models, Mapping):
        if not models:
            raise UsageError('nothing to evaluate: pass models={"original": ..., "unlearned": ...}.')
        return dict(models)
    trained = as_trained(models, "models")
    if trained.parent is None:
        return {"trained": trained}
    return {"original": trained.parent, "unlearned": trained}


def check_metrics(metrics: Iterable[str | Metric], models: Mapping[str, nn.Module], splits: Mapping[str, Any]) -> None:
    """`UsageError` if one of these could not be measured on such models and data, so that nobody learns it too late."""
    given = as_splits(splits)
    evaluation = Evaluation(models, given, seconds=dict.fromkeys(models, 1.0))
    check_applies([_metric(m) for m in metrics], evaluation)


def _metric(name: str | Metric) -> Metric:
    return name if isinstance(name, Metric) else build(METRICS.load(METRICS.named(name)), {}, METRICS.named(name))
