"""Small requests: what the asymptotic tests say of fewer than `SMALL` samples is confirmed by exact ones.

Beside retrained models   every sample's phi = log(p_y / (1 - p_y)) under the audited model takes one of N + 1 places
                          among those under the retrained models. If it is one of them, and samples err independently
                          of each other, each place is as likely: (N + 1)^n choices. Two statistics, Bonferroni: the
                          sum of the standardised values (samples moved one way), and of their squares (either way)
Beside unseen samples     which samples are forgotten and which unseen is exchanged within each class
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from expunge.evidence.equivalence import ALPHA
from expunge.evidence.explain import FAILED, FORGOTTEN, INDISTINGUISHABLE, OPEN
from expunge.evidence.family import unseen_labels
from expunge.evidence.permutation import permuted_choices, permuted_groups
from expunge.evidence.signals import SIGNALS, confidence
from expunge.metrics.base import Evaluation

Array = np.ndarray
SMALL = 20  # samples to forget below which a verdict needs the exact test


def exact_beside_references(evaluation: Evaluation, model: str, retrained: Sequence[str]) -> float:
    """p that `model` is one of the retrained ones on the samples to forget; see the module."""
    labels = evaluation.labels("forget")
    phi = np.stack([confidence(evaluation.logits(name, "forget"), labels).numpy() for name in (model, *retrained)]).T
    squares = np.square(phi - phi.mean(1, keepdims=True))
    moved = permuted_choices(list(phi), seed=evaluation.seed)
    apart = permuted_choices(list(squares), seed=evaluation.seed, two_sided=False)
    return min(1.0, 2 * min(moved, apart))


def exact_beside_unseen(evaluation: Evaluation, model: str, signal: str) -> float:
    """p that the samples to forget are like unseen ones of their classes, by one attack signal."""
    labels, unseen = evaluation.labels("forget"), unseen_labels(evaluation)
    score = SIGNALS[signal]
    members = score(evaluation.logits(model, "forget"), labels).numpy()
    others = score(evaluation.logits(model, "test"), unseen).numpy()
    return permuted_groups(members, others, (labels.numpy(), unseen.numpy()), seed=evaluation.seed)


def confirmed(
    evaluation: Evaluation, retrained: Sequence[str], label: str, reasons: list[str]
) -> tuple[str, list[str]]:
    """The label and its reasons, or "not enough evidence" where so few samples do not carry them.

    Args:
        evaluation: With "original", "unlearned" and the retrained models.
        retrained: Names of these.
        label: By the asymptotic tests.
        reasons: Of the label.
    """
    count = len(evaluation.splits["forget"])
    if count >= SMALL or label not in (FORGOTTEN, *FAILED[1:3]):
        return label, reasons
    model = "original" if label == FORGOTTEN else "unlearned"
    p = exact_beside_references(evaluation, model, retrained)
    shown = f"with {count} samples the exact permutation test decides"
    if p < ALPHA:
        return label, [*reasons, f"{shown}; it gives p = {p:.3g} for the {model} model."]
    if label == FORGOTTEN:
        return INDISTINGUISHABLE, [
            f"{shown}, and it does not tell the untouched original from retrained models (p = {p:.3g}); pool several "
            "requests (`expunge audit --pool`).",
            *reasons,
        ]
    return OPEN, [
        f"{shown}, and it finds no difference (p = {p:.3g}); pool several requests (`expunge audit --pool`).",
        *reasons,
    ]


__all__ = ["SMALL", "confirmed", "exact_beside_references", "exact_beside_unseen"]
