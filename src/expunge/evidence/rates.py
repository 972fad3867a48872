"""From scores of members and non-members to rates with intervals: AUC, TPR at a low FPR, what they prove about epsilon.

Non-members may be weighted, so that classes count as often as among the members. An AUC below one half means that the
forgotten samples stick out: they can be told apart, the other way round.

Epsilon    a mechanism that is (epsilon, delta)-indistinguishable from retraining has TPR <= e^epsilon FPR + delta for
           every attack; the bound takes Clopper-Pearson limits of both (Jagielski et al., NeurIPS 2020)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from expunge.numerics.statistics import Interval, auc_interval, clopper_pearson, tail_rates

RATES = (0.001, 0.01)  # false positive rates that are looked at


@dataclass(frozen=True)
class Separation:
    """How well one score tells members from others. tpr: FPR -> TPR; None where too few non-members resolve it."""

    auc: Interval
    tpr: dict[float, Interval | None]


def separation(
    members: np.ndarray,
    others: np.ndarray,
    weights: np.ndarray,
    rng: np.random.Generator,
    *,
    resamples: int = 500,
    rates: tuple[float, ...] = RATES,
) -> Separation:
    """AUC (DeLong's interval) and TPR at low FPR (percentile interval over resampled members and others).

    members (m,), others (n,): scores, higher where a sample looks like a member; weights (n,) of the others. rng,
    resamples: of the interval of the rates.
    """
    effective = weights.sum() ** 2 / np.square(weights).sum()
    possible = [rate for rate in rates if rate * effective >= 1]
    known = dict(zip(possible, tail_rates(members, others, weights, possible, rng, resamples), strict=True))
    return Separation(auc_interval(members, others, weights), {rate: known.get(rate) for rate in rates})


def epsilon_bound(
    caught: int, members: int, mistaken: int, others: int, *, delta: float = 0.0, alpha: float = 0.05
) -> float:
    """Lower confidence bound of epsilon from one attack: log((TPR_low - delta) / FPR_high), at least 0.

    caught of `members` were called members, and `mistaken` of `others`. Either direction of the attack counts, so each
    limit has level alpha / 2, Bonferroni over the two directions.
    """
    bounds = [0.0]
    for hit, of, false, out_of in (
        (caught, members, mistaken, others),
        (others - mistaken, others, members - caught, members),
    ):
        low = clopper_pearson(hit, of, alpha / 2)[0]
        high = clopper_pearson(false, out_of, alpha / 2)[1]
        if low - delta > 0 and high > 0:
            bounds.append(math.log((low - delta) / high))
    return max(bounds)


def smallest_epsilon(members: int, others: int, *, delta: float = 0.0, alpha: float = 0.05) -> float:
    """The largest bound that so few samples could give, by a perfect attack: nothing above it can be excluded."""
    return epsilon_bound(members, members, 0, others, delta=delta, alpha=alpha)
