"""What unlearning cost each class: accuracy before and after, on the data that stay and on unseen data."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from expunge.api.prepare import as_classifier, as_module, as_splits, check_fit, pick_device
from expunge.core.errors import UsageError
from expunge.metrics.base import Evaluation

_Z = 1.959963984540054  # 97.5 % quantile of the normal distribution


def side_effects(
    original: Any, unlearned: Any, *, retain: Any = None, test: Any, device: str = "auto"
) -> list[dict[str, Any]]:
    """One row per class and kind of data ("retain", "test") that has samples of it, JSON-ready.

    class: its name. data: which data. samples: their number. before, after: accuracies in [0, 1] of the two models.
    change: after - before, with a 95 % interval low .. high for the paired difference. gone: no sample of the class is
    retained, so that the model was meant to lose it (never where `retain` is not given).

    Retained data without labels are left out. Raises `UsageError` if the test data have no labels.
    """
    splits = as_splits({"retain": retain, "test": test})
    if "test" not in splits or not splits["test"].has_labels:
        raise UsageError("side effects per class need test data with labels; pass test=...")
    models = {"original": as_module(original, "original"), "unlearned": as_module(unlearned, "unlearned")}
    target = pick_device(device)
    models = {name: as_classifier(module, splits, target)[0] for name, module in models.items()}
    for module in models.values():
        check_fit(module, splits, target)
    evaluation = Evaluation(models, splits, device=target)
    labelled = [name for name in ("retain", "test") if name in splits and splits[name].has_labels]
    kept = evaluation.labels("retain").unique() if "retain" in labelled else None
    return [row for name in labelled for row in _rows(evaluation, name, kept)]


def _rows(evaluation: Evaluation, data: str, kept: Tensor | None) -> Iterator[dict[str, Any]]:
    labels = evaluation.labels(data)
    before, after = (evaluation.correct(model, data) for model in ("original", "unlearned"))
    for number, name in enumerate(evaluation.splits[data].store.classes):
        chosen = labels == number
        if not bool(chosen.any()):
            continue
        mine, then = before[chosen], after[chosen]
        lost, won = int((mine & ~then).sum()), int((~mine & then).sum())
        low, high = paired_interval(lost, won, len(mine))
        yield {
            "class": str(name),
            "data": data,
            "samples": len(mine),
            "before": float(mine.double().mean()),
            "after": float(then.double().mean()),
            "change": (won - lost) / len(mine),
            "low": low,
            "high": high,
            "gone": kept is not None and not bool(torch.isin(torch.tensor(number), kept)),
        }


def paired_interval(lost: int, won: int, total: int) -> tuple[float, float]:
    """95 % interval of (won - lost) / total, where so many of `total` answers turned wrong or right.

    Wald's interval after 1/2 was added to each of the four cells (Agresti and Min, Statistics in Medicine 2005), so
    that it has a width even where nothing changed.
    """
    n, b, c = total + 2, won + 0.5, lost + 0.5
    change = (b - c) / n
    half = _Z * math.sqrt(b + c - (b - c) ** 2 / n) / n
    return max(-1.0, change - half), min(1.0, change + half)
