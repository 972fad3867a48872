"""Confusion of two classes: did forgetting swapped labels separate the classes again?

Paper      Goel et al., arXiv:2201.06640; Kurmanji et al., NeurIPS 2023 (RC)
Notation   C[i, j]: number of samples of class i that are predicted as class j

    IC-ERR  = (sum_{j != A} C[A, j] + sum_{j != B} C[B, j]) / (sum_j C[A, j] + sum_j C[B, j])
    FGT-ERR = C[A, B] + C[B, A]                       a count in the authors' code; also given as a share of A and B
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from expunge.core.errors import UsageError
from expunge.core.options import Field
from expunge.metrics.base import Evaluation, Metric, Value, metric, missing


@metric("confusion")
class ConfusionErrors(Metric):
    """IC-ERR and FGT-ERR on test, validation and retained samples, against their true labels; lower is better.

    The two classes are those whose labels the scenario swapped, inferred from the forget set; without such a pair, and
    without `classes`, the metric does not apply.
    """

    requires: ClassVar[tuple[str, ...]] = ("forget",)
    classes: tuple[int, int] | None = Field(None, description="the two classes; none: those the scenario swapped")

    def applies(self, evaluation: Evaluation) -> bool:
        return super().applies(evaluation) and self.pair(evaluation) is not None

    def compute(self, evaluation: Evaluation, model: str) -> Iterator[Value]:
        pair = self.pair(evaluation)
        if pair is None:
            return
        for split in evaluation.present(("test", "retain", "validation")):
            labels, predictions = evaluation.labels(split), evaluation.logits(model, split).argmax(1)
            errors = pair_errors(labels, predictions, *pair)
            if errors is None:
                why = f"the {split} split has no sample of the two classes"
                yield from missing(why, "fraction", "lower", f"{split}_ic_error", f"{split}_fgt_error")
                yield from missing(why, "count", "lower", f"{split}_fgt_count")
            else:
                interclass, count, total = errors
                yield Value(f"{split}_ic_error", interclass, "fraction", "lower")
                yield Value(f"{split}_fgt_error", count / total, "fraction", "lower")
                yield Value(f"{split}_fgt_count", count, "count", "lower")

    def pair(self, evaluation: Evaluation) -> tuple[int, int] | None:
        """The two classes, or None; raises `UsageError` for `classes` out of range."""
        if self.classes is None:
            return swapped_classes(evaluation)
        highest = evaluation.splits["forget"].num_classes - 1
        if self.classes[0] == self.classes[1] or not all(0 <= c <= highest for c in self.classes):
            raise UsageError(f"confusion: `classes` must be two different classes in 0..{highest}, got {self.classes}.")
        return self.classes


def pair_errors(labels: Tensor, predictions: Tensor, a: int, b: int) -> tuple[float, int, int] | None:
    """Errors between two classes.

    Args:
        labels: true classes (n,).
        predictions: predicted classes (n,).
        a: first class.
        b: second class.

    Returns:
        (IC-ERR in [0, 1], FGT-ERR as a count, number of samples of the two classes); None without such samples.
    """
    in_pair = (labels == a) | (labels == b)
    total = int(in_pair.sum())
    if not total:
        return None
    wrong = int((predictions[in_pair] != labels[in_pair]).sum())
    exchanged = ((labels == a) & (predictions == b)) | ((labels == b) & (predictions == a))
    return wrong / total, int(exchanged.sum()), total


def swapped_classes(evaluation: Evaluation) -> tuple[int, int] | None:
    """The two classes between which the labels of all forget samples were swapped; None if there is no such pair."""
    true, given = evaluation.true_labels("forget"), evaluation.labels("forget")
    if true is None:
        return None
    pairs = torch.stack([true, given], 1).sort(1).values.unique(dim=0)
    if len(pairs) != 1 or bool((true == given).any()):
        return None
    a, b = pairs[0].tolist()
    return (a, b)
