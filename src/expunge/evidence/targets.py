"""Which samples an attack aims at: RULI's vulnerable and protected targets, and canaries.

Source     RULI: arXiv:2506.13009. Random targets understate what an attacker learns: few samples are memorised, and an
           average over all hides them
Vulnerable the half of the targets that shadow originals tell apart best when they saw them:
               v(x) = (mean phi over IN shadows - mean phi over OUT shadows) / sqrt((var_IN + var_OUT) / 2)
           Privacy game: among the vulnerable, is a sample that was forgotten told from one that was never there?
           Efficacy game: the same among the protected, where a method has little to forget
Canaries   samples with random wrong labels, inserted before training. Nobody can learn their labels from other samples,
           so they show what a method leaves of what was memorised; as many are left out, as the unseen ones
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from expunge.core.errors import UsageError
from expunge.core.seeds import numpy_generator
from expunge.data.split import Split
from expunge.evidence.shadows import ShadowScores

Array = np.ndarray


def vulnerability(shadows: ShadowScores) -> Array:
    """v of every target (T,): how much better shadow originals know it when they saw it.

    Args:
        shadows: With at least two IN and two OUT shadows per target.
    """
    inside = np.where(shadows.trained, shadows.plain, np.nan)
    outside = np.where(shadows.trained, np.nan, shadows.plain)
    spread = np.sqrt((np.nanvar(inside, axis=0, ddof=1) + np.nanvar(outside, axis=0, ddof=1)) / 2)
    v: Array = (np.nanmean(inside, axis=0) - np.nanmean(outside, axis=0)) / np.maximum(spread, 1e-9)
    return v


def vulnerable(shadows: ShadowScores) -> Array:
    """Bool (T,): the vulnerable half, members and unseen targets apart, so that both halves hold as many of either."""
    v = vulnerability(shadows)
    chosen = np.zeros(len(v), bool)
    for side in (True, False):
        rows = np.flatnonzero(shadows.plan.member == side)
        order = rows[np.argsort(-v[rows], kind="stable")]
        chosen[order[: (len(order) + 1) // 2]] = True
    return chosen


@dataclass(frozen=True, eq=False)
class Canaries:
    """A training set with canaries in it.

    Attributes:
        train: What is trained on: all samples but those left out, the canaries with their wrong labels.
        inserted: The canaries among them, to be forgotten later.
        left_out: As many canaries that are not trained on, to stand beside them as the unseen samples.
    """

    train: Split
    inserted: Split
    left_out: Split


def insert_canaries(train: Split, count: int, *, seed: int = 0) -> Canaries:
    """Give 2 `count` random training samples random wrong labels, and leave half of them out of the training.

    Train on `.train`, forget `.inserted`, and audit with `test=.left_out`: both are drawn alike, so an attack that
    tells them apart has found what was memorised.

    Args:
        train: The training set, with labels of at least two classes.
        count: Canaries that are trained on, at least 1.
        seed: Of samples and labels.

    Raises:
        UsageError: If there are fewer than 2 `count` + 1 samples, or a single class.
    """
    if count < 1 or 2 * count >= len(train) or train.num_classes < 2:
        raise UsageError(
            f"canaries must be at least 1 and fewer than half of the {len(train)} training samples, of two classes or "
            f"more; got {count} of {train.num_classes} classes."
        )
    rng = numpy_generator(seed, "canaries")
    places = train.index[torch.from_numpy(rng.permutation(len(train))[: 2 * count])]
    known = train.labels if train.labels is not None else train.store.labels
    labels = known.clone()
    shift = torch.from_numpy(rng.integers(1, train.num_classes, 2 * count))
    labels[places] = (labels[places] + shift) % train.num_classes
    marked = train.with_labels(labels)
    inserted, left_out = places[:count].sort().values, places[count:].sort().values
    staying = train.index[~torch.isin(train.index, left_out)]
    return Canaries(marked.take(staying), marked.take(inserted, "forget"), marked.take(left_out, "test"))


__all__ = ["Canaries", "insert_canaries", "vulnerability", "vulnerable"]
