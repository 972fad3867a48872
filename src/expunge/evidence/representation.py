"""Is the representation simply the original's? Then whatever it holds of the samples was not removed."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from expunge.core.errors import UsageError
from expunge.metrics.base import Evaluation
from expunge.numerics.statistics import gram_cka

SAME = 0.9999  # CKA to the original's representation from which on it counts as the same
MOST = 512  # samples to forget whose representations are compared


def original_body(
    evaluation: Evaluation, retrained: Sequence[str], *, original: str = "original", unlearned: str = "unlearned"
) -> list[str]:
    """One sentence if the representation of the samples to forget is the original's, [] if it is not.

    What enters the head is compared by unbiased linear CKA, so that a shift, a rotation or a new head changes nothing.
    Where retrained models have it, too (a frozen backbone that never saw the samples), it says nothing.
    """
    if torch.equal(evaluation.logits(unlearned, "forget"), evaluation.logits(original, "forget")):
        return []  # the answers are the original's, too: nothing is hidden
    try:
        before = _gram(evaluation, original)
        mine, *theirs = (_likeness(_gram(evaluation, name), before) for name in (unlearned, *retrained))
    except UsageError:
        return []
    if mine < SAME or any(one >= SAME for one in theirs):
        return []
    beside = f", that of retrained models by {max(theirs):.4f} at most" if theirs else ""
    return [
        f"what enters the last layer is the original's: the representation of the samples to forget is like it by "
        f"{mine:.4f} (CKA){beside}; only the answers were changed."
    ]


def _gram(evaluation: Evaluation, name: str) -> torch.Tensor:
    rows = evaluation.features(name, "forget")[:MOST].double()
    return rows @ rows.T


def _likeness(gram: torch.Tensor, original: torch.Tensor) -> float:
    return (gram_cka(gram, original, unbiased=True) or 0.0) if len(gram) >= 4 else 0.0
