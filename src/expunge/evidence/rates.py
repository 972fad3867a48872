"""Attack success with intervals, from scores of members and non-members: AUC, TPR at low FPR, lower bounds of epsilon.

Non-members may be weighted so that class shares equal those of the members. An AUC below 0.5 means that the forgotten
samples stand out: they are separable in the other direction.

Epsilon    a mechanism that is (epsilon, delta)-indistinguishable from retraining has TPR <= e^epsilon FPR + delta for
           every attack; the bound takes Clopper-Pearson limits of both (Jagielski et al., NeurIPS 2020)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from expunge.numerics.statistics import Interval, auc_interval, clopper_pearson, tail_rates

RATES = (0.001, 0.01)  # false positive rates that are reported


@dataclass(frozen=True)
class Separation:
    """AUC of one score, and FPR -> TPR (None if there are too few non-members to resolve that FPR)."""

    auc: Interval
    tpr: dict[float, Interval | None]


def separation(
    members: np.ndarray,
    non_members: np.ndarray,
    weights: np.ndarray,
    rng: np.random.Generator,
    *,
    resamples: int = 500,
    rates: tuple[float, ...] = RATES,
) -> Separation:
    """AUC (DeLong's interval) and TPR at low FPR (bootstrap percentile interval).

    Args:
        members: Scores of the members (m,); higher means more like a member.
        non_members: Scores of the non-members (n,).
        weights: Of the non-members (n,), > 0.
        rng: Of the bootstrap.
        resamples: Of the bootstrap, >= 1.
        rates: False positive rates in (0, 1).
    """
    effective = weights.sum() ** 2 / np.square(weights).sum()
    possible = [rate for rate in rates if rate * effective >= 1]
    by_rate = dict(zip(possible, tail_rates(members, non_members, weights, possible, rng, resamples), strict=True))
    return Separation(auc_interval(members, non_members, weights), {rate: by_rate.get(rate) for rate in rates})


def epsilon_bound(
    true_positives: int,
    members: int,
    false_positives: int,
    non_members: int,
    *,
    delta: float = 0.0,
    alpha: float = 0.05,
) -> float:
    """Lower confidence bound of epsilon from one attack: log((TPR_low - delta) / FPR_high), >= 0.

    Both directions of the attack count, so each limit has level alpha / 2 (Bonferroni).

    Args:
        true_positives: Members that were predicted to be members.
        members: Number of members.
        false_positives: Non-members that were predicted to be members.
        non_members: Number of non-members.
        delta: Of (epsilon, delta)-indistinguishability, in [0, 1).
        alpha: Error level of the bound, in (0, 1).
    """
    bounds = [0.0]
    for hit, of, false, out_of in (
        (true_positives, members, false_positives, non_members),
        (non_members - false_positives, non_members, members - true_positives, members),
    ):
        low = clopper_pearson(hit, of, alpha / 2)[0]
        high = clopper_pearson(false, out_of, alpha / 2)[1]
        if low - delta > 0 and high > 0:
            bounds.append(math.log((low - delta) / high))
    return max(bounds)


def smallest_epsilon(members: int, non_members: int, *, delta: float = 0.0, alpha: float = 0.05) -> float:
    """The bound of a perfect attack on this many samples: an epsilon above it can neither be shown nor excluded."""
    return epsilon_bound(members, members, 0, non_members, delta=delta, alpha=alpha)
