"""Statistics of metrics and evidence: AUC with DeLong intervals, tail rates, exact proportions, Holm, CKA.

Sources    AUC variance: DeLong, DeLong and Clarke-Pearson, Biometrics 44, 1988, here with weights on the negatives by
           linearisation; tail rates: the Poisson bootstrap, Hanley and MacGibbon, 2006; Clopper and Pearson, 1934;
           Holm, 1979; CKA: Kornblith et al., ICML 2019, unbiased HSIC: Song et al., JMLR 13, 2012
Notation   members (m,) and others (n,) are scores, higher for samples that look like members; weights (n,) >= 0 of the
           others match their class histogram to that of the members
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch import diag as _diag

Array = np.ndarray
_BLOCK = 2_000_000  # entries of the matrix of resampled weights held at a time


@dataclass(frozen=True)
class Interval:
    """A number with its 95 % interval [low, high]."""

    value: float
    low: float
    high: float


def placements(members: Array, others: Array, weights: Array | None = None) -> Array:
    """Weighted share of others below each member, ties counted half: (m,) in [0, 1]; their mean is the AUC.

    >>> placements(np.array([0.0, 2.0]), np.array([0.0, 1.0])).tolist()
    [0.25, 1.0]
    """
    order = np.argsort(others, kind="stable")
    ranked = others[order]
    mass = np.ones(len(others)) if weights is None else weights[order]
    up_to = np.concatenate([[0.0], np.cumsum(mass)])
    below = up_to[np.searchsorted(ranked, members, side="left")]
    not_above = up_to[np.searchsorted(ranked, members, side="right")]
    share: Array = (below + not_above) / (2 * up_to[-1])
    return share


def auc_interval(members: Array, others: Array, weights: Array | None = None) -> Interval:
    """AUC with its 95 % interval in closed form, in O((m + n) log(m + n)).

    The interval is symmetric in log(AUC / (1 - AUC)). If the scores separate perfectly, the variance is zero, and the
    exact binomial interval for the (effective) size of the smaller side is used instead.

    Args:
        members: scores (m,).
        others: scores (n,).
        weights: of the others (n,), >= 0; equal by default.
    """
    mass = np.ones(len(others)) if weights is None else np.asarray(weights, dtype=float)
    value, error = delong(members, others, mass)
    if value <= 0 or value >= 1 or error == 0:
        trials = max(1, int(min(len(members), mass.sum() ** 2 / np.square(mass).sum())))
        low, high = clopper_pearson(round(value * trials), trials)
        return Interval(value, min(low, value), max(high, value))
    centre, half = math.log(value / (1 - value)), 1.959963984540054 * error / (value * (1 - value))
    low, high = (1 / (1 + math.exp(-min(max(edge, -700.0), 700.0))) for edge in (centre - half, centre + half))
    return Interval(value, low, high)


def delong(members: Array, others: Array, weights: Array) -> tuple[float, float]:
    """AUC and its standard error; a side with fewer than two samples contributes no variance."""
    of_members = placements(members, others, weights)
    of_others = 1 - placements(others, members)
    value = float(of_members.mean())
    m, n = len(members), int((weights > 0).sum())
    variance = float(of_members.var(ddof=1)) / m if m > 1 else 0.0
    if n > 1:
        residual = weights * (of_others - value)
        variance += float(np.square(residual).sum() / weights.sum() ** 2) * n / (n - 1)
    return value, math.sqrt(variance)


def weighted_auc(positive: Array, negative: Array, w_pos: Array, w_neg: Array) -> float:
    """AUC P(positive > negative) + P(equal) / 2 with weights w_pos (P,) and w_neg (N,) >= 0 of both sides."""
    return float(w_pos @ placements(positive, negative, w_neg) / w_pos.sum())


def tpr_at(members: Array, others: Array, weights: Array, rate: float) -> float:
    """True positive rate at the false positive rate `rate` in (0, 1), with weighted others; in [0, 1]."""
    order = np.argsort(-others, kind="stable")
    above = np.cumsum(weights[order]) / weights.sum()
    passed = int(np.searchsorted(above, rate, side="right"))  # number of the highest others that may exceed it
    if passed == len(others):
        return 1.0
    return float((members > others[order[passed]]).mean())


def tail_rates(
    members: Array,
    others: Array,
    weights: Array,
    rates: Sequence[float],
    rng: np.random.Generator,
    resamples: int = 500,
) -> list[Interval]:
    """True positive rates at low false positive rates, with 95 % percentile intervals of a Poisson bootstrap.

    A resample gives every non-member a Poisson(1) weight, drawn for the tail alone: the total weight of the others is
    approximately normal. The share of resampled members above a threshold is binomial.

    Args:
        members: scores (m,).
        others: scores (n,).
        weights: of the others (n,), >= 0.
        rates: false positive rates in (0, 1).
        rng: of the resamples.
        resamples: number of resamples.

    Returns:
        One interval per rate.
    """
    if not rates:
        return []
    total, effective = weights.sum(), weights.sum() ** 2 / np.square(weights).sum()
    reach = max(rates) + 8 * math.sqrt(max(rates) / effective) + 20 / effective
    size = min(len(others), int(reach * len(others)) + 1)
    while True:  # if the highest samples have small weights, a longer tail is needed
        top = np.argpartition(-others, size - 1)[:size] if size < len(others) else np.arange(len(others))
        if size == len(others) or weights[top].sum() >= reach * total:
            break
        size = min(len(others), 2 * size)
    order = top[np.argsort(-others[top], kind="stable")]
    ranked, mass = others[order], weights[order]
    rest = max(total - mass.sum(), 0.0)
    deviation = math.sqrt(max(np.square(weights).sum() - np.square(mass).sum(), 0.0))
    above = len(members) - np.searchsorted(np.sort(members), ranked, side="right")
    shares = np.append(above / len(members), 1.0)
    last = len(ranked) if size == len(others) else len(ranked) - 1
    first = np.searchsorted(np.cumsum(mass) / total, rates, side="right")
    points = shares[np.minimum(first, last)]
    draws: list[list[Array]] = [[] for _ in rates]
    for start in range(0, resamples, block := max(1, _BLOCK // size)):
        count = min(block, resamples - start)
        up_to = np.cumsum(rng.poisson(1.0, (count, size)) * mass, axis=1)
        whole = up_to[:, -1] + np.maximum(rest + deviation * rng.standard_normal(count), 0.0)
        for rate, draw in zip(rates, draws, strict=True):
            passed = (up_to <= rate * whole[:, None]).sum(1)
            draw.append(rng.binomial(len(members), shares[np.minimum(passed, last)]) / len(members))
    low, high = np.quantile([np.concatenate(parts) for parts in draws], [0.025, 0.975], axis=1)
    return [Interval(*map(float, row)) for row in zip(points, low, high, strict=True)]


def wilson(hits: float, trials: float) -> tuple[float, float]:
    """Two-sided 95 % interval of a proportion (Wilson, 1927); fractional counts are those of weighted samples."""
    z = 1.959963984540054
    share, scale = hits / trials, 1 + z**2 / trials
    centre = share + z**2 / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def mean_of_shares(first: Array, second: Array, weights: Array) -> Interval:
    """Mean of two independent proportions with its 95 % interval, e.g. balanced accuracy.

    Combines the two Wilson intervals by MOVER (Zou and Donner, Statistics in Medicine 27, 2008).

    Args:
        first: bool (P,).
        second: bool (N,).
        weights: of `second` (N,), >= 0.
    """
    effective = weights.sum() ** 2 / np.square(weights).sum()
    shares = float(first.mean()), float(weights @ second / weights.sum())
    edges = [wilson(share * size, size) for share, size in zip(shares, (len(first), effective), strict=True)]
    value = sum(shares) / 2
    down = math.hypot(*(share - low for share, (low, _) in zip(shares, edges, strict=True))) / 2
    up = math.hypot(*(high - share for share, (_, high) in zip(shares, edges, strict=True))) / 2
    return Interval(value, value - down, value + up)


def clopper_pearson(successes: int, trials: int, alpha: float = 0.05) -> tuple[float, float]:
    """Exact two-sided interval of the proportion successes / trials at level 1 - alpha (Clopper and Pearson, 1934).

    >>> low, high = clopper_pearson(0, 10)
    >>> low, round(high, 4)
    (0.0, 0.3085)
    """
    from scipy.stats import beta

    low = float(beta.ppf(alpha / 2, successes, trials - successes + 1)) if successes else 0.0
    high = float(beta.ppf(1 - alpha / 2, successes + 1, trials - successes)) if successes < trials else 1.0
    return low, high


def holm(p: Array) -> Array:
    """Holm's step-down adjustment of p-values (n,); NaN stays NaN.

    >>> holm(np.array([0.01, 0.04, 0.03])).round(2).tolist()
    [0.03, 0.06, 0.06]
    """
    adjusted = np.full(len(p), np.nan)
    known = np.flatnonzero(~np.isnan(p))
    worst = 0.0
    for rank, index in enumerate(known[np.argsort(p[known], kind="stable")]):
        worst = max(worst, min(1.0, (len(known) - rank) * float(p[index])))
        adjusted[index] = worst
    return adjusted


def gram_cka(k: Tensor, other: Tensor, *, unbiased: bool) -> float | None:
    """CKA of two Gram matrices (n, n); None if the rows behind one of them are all equal."""
    hsic = unbiased_hsic if unbiased else _biased_hsic
    own = [float(hsic(g, g)) for g in (k, other)]
    if any(value <= 1e-20 * float(g.trace()) ** 2 for value, g in zip(own, (k, other), strict=True)):
        return None
    return float(hsic(k, other)) / (own[0] * own[1]) ** 0.5


def unbiased_hsic(k: Tensor, other: Tensor) -> Tensor:
    """n (n - 3) times the unbiased estimator of HSIC from two kernel matrices (n, n), n >= 4; a scalar tensor."""
    n = len(k)
    k, other = (g - _diag(g.diagonal()) for g in (k, other))
    ones = k.sum() * other.sum() / ((n - 1) * (n - 2))
    return (k * other).sum() + ones - 2 / (n - 2) * (k.sum(0) @ other.sum(0))


def _biased_hsic(k: Tensor, other: Tensor) -> Tensor:
    centred = k - k.mean(0) - k.mean(1, keepdim=True) + k.mean()
    return (centred * other).sum()
