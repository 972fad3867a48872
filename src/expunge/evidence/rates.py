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

from expunge.metrics.membership import weighted_auc

RATES = (0.001, 0.01)  # false positive rates that are looked at


@dataclass(frozen=True)
class Interval:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Separation:
    """How well one score tells members from others. tpr: FPR -> TPR; None where too few non-members resolve it."""

    auc: Interval
    tpr: dict[float, Interval | None]


def tpr_at(members: np.ndarray, others: np.ndarray, weights: np.ndarray, rate: float) -> float:
    """Largest share of members above a threshold that at most `rate` of the (weighted) others exceed."""
    order = np.argsort(-others, kind="stable")
    above = np.cumsum(weights[order]) / weights.sum()
    passed = int(np.searchsorted(above, rate, side="right"))  # so many of the highest others may lie above
    if passed == len(others):
        return 1.0
    return float((members > others[order[passed]]).mean())


def separation(
    members: np.ndarray,
    others: np.ndarray,
    weights: np.ndarray,
    rng: np.random.Generator,
    *,
    resamples: int = 500,
    rates: tuple[float, ...] = RATES,
) -> Separation:
    """AUC and TPR at low FPR, with percentile intervals over resampled members and others."""
    effective = weights.sum() ** 2 / np.square(weights).sum()
    possible = [rate for rate in rates if rate * effective >= 1]

    point = [float(weighted_auc(members, others, np.ones(len(members)), weights))]
    point += [tpr_at(members, others, weights, rate) for rate in possible]
    levels, places = np.unique(np.concatenate([members, others]), return_inverse=True)
    mine, theirs = places[: len(members)], places[len(members) :]
    draws = []
    for _ in range(resamples):
        chosen = mine[rng.integers(len(members), size=len(members))]
        at = rng.integers(len(others), size=len(others))
        if weights[at].sum() > 0:
            counts = np.bincount(chosen, minlength=len(levels)).astype(float)
            mass = np.bincount(theirs[at], weights[at], minlength=len(levels))
            draws.append(_at_levels(counts, mass, possible))
    low, high = np.quantile(np.array(draws), [0.025, 0.975], axis=0)
    found = [Interval(p, float(lo), float(hi)) for p, lo, hi in zip(point, low, high, strict=True)]
    known = dict(zip(possible, found[1:], strict=True))
    return Separation(found[0], {rate: known.get(rate) for rate in rates})


def _at_levels(counts: np.ndarray, mass: np.ndarray, rates: list[float]) -> list[float]:
    """AUC and TPR at each rate from members (counts) and others (weights) per distinct score, ascending: no sorting."""
    total, weight = counts.sum(), mass.sum()
    up_to = mass.cumsum()
    found = [float((counts * (up_to - mass / 2)).sum() / (total * weight))]  # a tie is worth one half
    above_members, above = counts[::-1].cumsum(), mass[::-1].cumsum() / weight
    for rate in rates:
        level = int(np.searchsorted(above, rate, side="right"))  # the highest level that others may not pass
        found.append(1.0 if level == len(above) else float(above_members[level] - counts[::-1][level]) / total)
    return found


def clopper_pearson(successes: int, trials: int, alpha: float = 0.05) -> tuple[float, float]:
    """Exact two-sided interval of a proportion.

    >>> low, high = clopper_pearson(0, 10)
    >>> low, round(high, 4)
    (0.0, 0.3085)
    """
    from scipy.stats import beta

    low = float(beta.ppf(alpha / 2, successes, trials - successes + 1)) if successes else 0.0
    high = float(beta.ppf(1 - alpha / 2, successes + 1, trials - successes)) if successes < trials else 1.0
    return low, high


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
