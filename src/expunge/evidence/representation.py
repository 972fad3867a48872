"""Whether the representation is unchanged from the original; then whatever it encodes was not removed."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from expunge.core.errors import UsageError
from expunge.metrics.base import Evaluation
from expunge.numerics.statistics import gram_cka

SAME = 0.9999  # CKA to the original's representation from which it counts as unchanged
MOST = 512  # most forget samples whose representations are compared


def original_body(
    evaluation: Evaluation, retrained: Sequence[str], *, original: str = "original", unlearned: str = "unlearned"
) -> list[str]:
    """One sentence if the representation of the forget samples is the original's, [] if it is not.

    The inputs of the head are compared by unbiased linear CKA, which ignores shifts, rotations and a new head. If
    retrained models share the representation (a frozen backbone that never saw the samples), the result is [].
    """
    if torch.equal(evaluation.logits(unlearned, "forget"), evaluation.logits(original, "forget")):
        return []  # the answers are the original's too: nothing is hidden
    try:
        before = _gram(evaluation, original)
        similarity, *reference_similarities = (
            _similarity(_gram(evaluation, name), before) for name in (unlearned, *retrained)
        )
    except UsageError:
        return []
    if similarity < SAME or any(value >= SAME for value in reference_similarities):
        return []
    reference_text = f" (retrained models: at most {max(reference_similarities):.4f})" if reference_similarities else ""
    return [
        f"the features of the samples to forget are unchanged: their CKA to the original's is {similarity:.4f}"
        f"{reference_text}; only the answers were changed."
    ]


def _gram(evaluation: Evaluation, name: str) -> torch.Tensor:
    rows = evaluation.features(name, "forget")[:MOST].double()
    return rows @ rows.T


def _similarity(gram: torch.Tensor, original: torch.Tensor) -> float:
    return (gram_cka(gram, original, unbiased=True) or 0.0) if len(gram) >= 4 else 0.0
