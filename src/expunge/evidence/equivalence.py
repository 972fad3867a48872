"""Is the unlearned model one of the retrained ones? Tests of one model against N retrained with other seeds.

For a statistic T:   d = T(unlearned) - mean T(retrained),   se = s sqrt(1 + 1/N),   s over the N retrained models

s is at least the statistic's resolution, for an accuracy over n samples 1/n: that a few retrained models agree to the
sample is chance, and would otherwise make every other model differ.

Equivalent   two one-sided t-tests with N - 1 degrees of freedom: d is shown to lie within +- delta
             (Schuirmann 1987; the spread of one more retrained model is part of se)
Different    |d| exceeds what one more retrained model would show: two-sided t-test, p by Holm over all statistics

All statistics must be equivalent for the whole to be (intersection-union), which needs no correction. Where neither is
shown there is not enough evidence, and more retrained models are what helps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ALPHA = 0.05


@dataclass(frozen=True)
class Comparison:
    """One statistic. difference: d; low, high: its 90 % interval, which lies within +- delta where `equivalent`.

    p_equivalence: the larger of the two one-sided p; p_difference: two-sided, not yet corrected.
    """

    name: str
    value: float
    reference: float
    spread: float
    delta: float
    difference: float
    low: float
    high: float
    p_equivalence: float
    p_difference: float

    @property
    def equivalent(self) -> bool:
        return self.p_equivalence < ALPHA


def compare(
    name: str, value: float, retrained: Sequence[float], delta: float, *, resolution: float = 0.0
) -> Comparison:
    """`value` of the unlearned model against those of at least two retrained ones. resolution: smallest spread."""
    sample = np.asarray(retrained, dtype=float)
    if len(sample) < 2:
        raise ValueError(f"{name}: at least two retrained models are needed, got {len(sample)}.")
    mean, spread = float(sample.mean()), max(float(sample.std(ddof=1)), resolution)
    error = spread * math.sqrt(1 + 1 / len(sample))
    return _tested(name, value, mean, spread, delta, error, len(sample) - 1)


def compare_paired(
    name: str, values: Sequence[float], retrained: Sequence[float], delta: float, *, resolution: float = 0.0
) -> Comparison:
    """A method over seeds: its values against those of the retrained model of the same seed, at least two pairs.

    spread: of the differences, which are tested by the paired t-test and its two one-sided versions.
    """
    mine, theirs = np.asarray(values, dtype=float), np.asarray(retrained, dtype=float)
    if len(mine) < 2 or len(mine) != len(theirs):
        raise ValueError(f"{name}: at least two pairs are needed, got {len(mine)} and {len(theirs)} values.")
    spread = max(float((mine - theirs).std(ddof=1)), resolution)
    error = spread / math.sqrt(len(mine))
    return _tested(name, float(mine.mean()), float(theirs.mean()), spread, delta, error, len(mine) - 1)


def _tested(
    name: str, value: float, mean: float, spread: float, delta: float, error: float, freedom: int
) -> Comparison:
    from scipy.stats import t

    d = value - mean
    if error < 1e-12:  # all retrained models agree: so does this one, or it does not
        inside, same = abs(d) < delta, abs(d) < 1e-12
        return Comparison(name, value, mean, 0.0, delta, d, d, d, 0.0 if inside else 1.0, 1.0 if same else 0.0)
    p_equivalence = max(float(t.sf((d + delta) / error, freedom)), float(t.sf((delta - d) / error, freedom)))
    half = float(t.ppf(1 - ALPHA, freedom)) * error
    p_difference = 2 * float(t.sf(abs(d) / error, freedom))
    return Comparison(name, value, mean, spread, delta, d, d - half, d + half, p_equivalence, p_difference)


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's step-down adjustment; NaN stays NaN.

    >>> holm(np.array([0.01, 0.04, 0.03])).round(2).tolist()
    [0.03, 0.06, 0.06]
    """
    adjusted = np.full(len(p), np.nan)
    known = np.flatnonzero(~np.isnan(p))
    worst = 0.0
    for at, index in enumerate(known[np.argsort(p[known], kind="stable")]):
        worst = max(worst, min(1.0, (len(known) - at) * float(p[index])))
        adjusted[index] = worst
    return adjusted
