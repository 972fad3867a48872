"""Who is worst off: retained samples that forgetting exposes, the worst group, and the worst-off samples.

Sources    privacy of retained samples: arXiv:2605.01129; paired variance of two AUC: DeLong et al., 1988
Notation   scores: higher where a sample looks like a member; z (n,): standardised against retrained models (`family`)

    exposure   AUC(after) - AUC(before) of retained against unseen samples. With the placements V of each retained and W
               of each unseen sample (their share of the other side below or above), paired over both models:
               variance = var(V_after - V_before) / m + var(W_after - W_before) / n
    caught     share of retained samples above the threshold that 1 % of unseen samples exceed
    group      mean z of a group g, times sqrt(n_g): the group with the largest
    worst-off  mean z of the tenth of the samples with the largest z
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from expunge.numerics.statistics import Interval, auc_interval, placements, tpr_at

Array = np.ndarray
FEWEST_IN_GROUP = 5
WORST_SHARE = 0.1
RATE = 0.01


@dataclass(frozen=True)
class Exposure:
    """AUC of retained against unseen samples.

    Attributes:
        before: Of the original, with its 95 % interval.
        after: Of the unlearned model.
        change: after - before, with its paired 95 % interval; above 0 where forgetting exposed retained samples.
        caught_before: Share of retained samples caught at a false positive rate of 1 %.
        caught_after: The same after forgetting.
    """

    before: Interval
    after: Interval
    change: Interval
    caught_before: float
    caught_after: float


def exposure(before: tuple[Array, Array], after: tuple[Array, Array]) -> Exposure:
    """Privacy of the retained samples before and after forgetting.

    Args:
        before: Scores of m >= 2 retained and n >= 2 unseen samples under the original.
        after: Scores of the same samples, in the same order, under the unlearned model.
    """
    of_members = [placements(members, others) for members, others in (before, after)]
    of_others = [1 - placements(others, members) for members, others in (before, after)]
    d = float(of_members[1].mean() - of_members[0].mean())
    variance = sum(float((b - a).var(ddof=1)) / len(a) for a, b in (of_members, of_others))
    half = 1.959963984540054 * math.sqrt(variance)
    caught = [tpr_at(members, others, np.ones(len(others)), RATE) for members, others in (before, after)]
    return Exposure(auc_interval(*before), auc_interval(*after), Interval(d, d - half, d + half), *caught)


def worst_group(z: Array, groups: Array) -> tuple[int, float]:
    """The group whose mean z is the clearest.

    Args:
        z: Of each sample (n,), see the module.
        groups: Number of the group of each sample (n,).

    Returns:
        The group and sqrt(n_g) times its mean z; (-1, 0.0) where no group has five samples.
    """
    sizes = np.bincount(groups)
    sums = np.bincount(groups, weights=z)
    able = sizes >= FEWEST_IN_GROUP
    if not able.any():
        return -1, 0.0
    clear = np.where(able, sums / np.sqrt(np.maximum(sizes, 1)), -np.inf)
    first = int(clear.argmax())
    return first, float(clear[first])


def worst_off(z: Array, share: float = WORST_SHARE) -> float:
    """Mean z of the worst-off samples.

    Args:
        z: Of each sample (n,), n >= 1.
        share: Of the samples that count, in (0, 1]; at least one does.
    """
    count = max(1, round(share * len(z)))
    return float(np.sort(z)[-count:].mean())


def group_numbers(names: Array) -> tuple[Array, Mapping[int, str]]:
    """Numbers (n,) for names of groups (n,), and the name of each number."""
    unique, numbers = np.unique(names, return_inverse=True)
    return numbers, {i: str(name) for i, name in enumerate(unique)}


__all__ = ["Exposure", "exposure", "group_numbers", "worst_group", "worst_off"]
