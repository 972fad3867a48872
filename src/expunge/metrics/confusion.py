"""Confusion of two classes: did forgetting swapped labels separate the classes again?

Paper      Goel et al., arXiv:2201.06640; Kurmanji et al., NeurIPS 2023 (RC). C[i, j]: samples of class i said to be j

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
    """IC-ERR and FGT-ERR on test, validation and retained samples, against their own (clean) labels; lower is better.

    The two classes are those whose labels the scenario swapped, found from the forget set; without such a pair, and
    without `classes`, the metric has no value.
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
            labels, said = evaluation.labels(split), evaluation.logits(model, split).argmax(1)
            errors = pair_errors(labels, said, *pair)
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
        if self.classes is None:
            return swapped_classes(evaluation)
        highest = evaluation.splits["forget"].num_classes - 1
        if self.classes[0] == self.classes[1] or not all(0 <= c <= highest for c in self.classes):
            raise UsageError(f"confusion: `classes` must be two different ones in 0..{highest}, got {self.classes}.")
        return self.classes


def pair_errors(labels: Tensor, said: Tensor, a: int, b: int) -> tuple[float, int, int] | None:
    """(IC-ERR in [0, 1], FGT-ERR count, samples of the two classes); None without a sample of either."""
    mine = (labels == a) | (labels == b)
    total = int(mine.sum())
    if not total:
        return None
    wrong = int((said[mine] != labels[mine]).sum())
    exchanged = ((labels == a) & (said == b)) | ((labels == b) & (said == a))
    return wrong / total, int(exchanged.sum()), total


def swapped_classes(evaluation: Evaluation) -> tuple[int, int] | None:
    """The two classes that all samples of the forget set were swapped between; None if it is not so."""
    true, shown = evaluation.true_labels("forget"), evaluation.labels("forget")
    if true is None:
        return None
    pairs = torch.stack([true, shown], 1).sort(1).values.unique(dim=0)
    if len(pairs) != 1 or bool((true == shown).any()):
        return None
    a, b = pairs[0].tolist()
    return (a, b)
