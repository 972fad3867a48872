"""Is the unlearned model one of the retrained ones? Tests of one model against N retrained with other seeds.

For a statistic T:   d = T(unlearned) - mean T(retrained),   se = s sqrt(1 + 1/N)

Spread       s is the standard deviation over the N retrained models, and at least the `floor`: what single samples that
             err independently of each other under different seeds would give, sqrt(mean over samples of their variance
             over the models / n). The floor is an average over samples, so it is known better than s; and s is at least
             the `resolution`, 1/n: that a few models agree to the sample is chance, and would make every other differ
Freedom      N - 1, and where the floor decides, up to `TRUST` more: it stands for that many further models
             (f = N - 1 + TRUST min(1, (floor / s)^4), a moderated t-test in the manner of Smyth, 2004)
Left out     where T(j) is the distance of j to the mean of the other models, these N values spread more than one of
             them varies, by N / (N - 1), and their mean is zero: se = s sqrt(1 + 1/N) (N - 1) / N, which is exact
Different    |d| exceeds what one more retrained model would show: two-sided t-test, p by Holm over the whole family
Equivalent   two one-sided t-tests: d is shown to lie within +- delta (Schuirmann, 1987)
Detectable   the smallest |d| that the test finds with a probability of 80 % at the level of Holm's first step
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ALPHA = 0.05
POWER = 0.80
TRUST = 8.0  # further models that the floor of the spread stands for


@dataclass(frozen=True)
class Comparison:
    """One statistic of the unlearned model against its values in retrained ones.

    difference: d; low, high: its 90 % interval, which lies within +- delta where `equivalent`. p_equivalence: the
    larger of the two one-sided p; p_difference: two-sided, not yet corrected; p_corrected: by Holm over the family.
    error, freedom: of d. detectable: as in the module. original: T(original), p_original: its own corrected p.
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
    error: float = 0.0
    freedom: float = math.inf
    p_corrected: float = math.nan
    detectable: float = math.nan
    original: float = math.nan
    p_original: float = math.nan

    @property
    def equivalent(self) -> bool:
        return self.p_equivalence < ALPHA

    @property
    def differs(self) -> bool:
        """Different at 5 % after the correction for the whole family."""
        return self.p_corrected < ALPHA

    @property
    def tells_original(self) -> bool:
        """Whether the original itself differs from retraining here; where it does not, nothing can be shown."""
        return self.p_original < ALPHA


def compare(
    name: str,
    value: float,
    retrained: Sequence[float],
    delta: float,
    *,
    resolution: float = 0.0,
    floor: float = 0.0,
    left_out: bool = False,
) -> Comparison:
    """`value` of the unlearned model against those of at least two retrained ones.

    delta: difference that counts as none. resolution, floor: of the spread, see the module; 0 where there is none.
    left_out: each value of a retrained model is its distance to the mean of the others, and `value` the distance to
    that mean, averaged over the model that is left out.
    """
    sample = np.asarray(retrained, dtype=float)
    if len(sample) < 2:
        raise ValueError(f"{name}: at least two retrained models are needed, got {len(sample)}.")
    least = max(resolution, floor)
    spread = max(float(sample.std(ddof=1)), least)
    trusted = TRUST * (floor / spread) ** 4 if floor > 0 else 0.0
    error = spread * math.sqrt(1 + 1 / len(sample))
    if left_out:
        error *= 1 - 1 / len(sample)
    return _tested(name, value, float(sample.mean()), spread, delta, error, len(sample) - 1 + trusted)


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


def detectable(error: float, freedom: float, family: int) -> float:
    """Smallest |d| that is found with a probability of `POWER` at the level `ALPHA` / family (two-sided)."""
    from scipy.stats import norm, t

    return error * (float(t.isf(ALPHA / family / 2, freedom)) + float(norm.ppf(POWER)))


def _tested(
    name: str, value: float, mean: float, spread: float, delta: float, error: float, freedom: float
) -> Comparison:
    from scipy.stats import t

    d = value - mean
    if error < 1e-12:  # all retrained models agree: so does this one, or it does not
        inside, same = abs(d) < delta, abs(d) < 1e-12
        return Comparison(name, value, mean, 0.0, delta, d, d, d, 0.0 if inside else 1.0, 1.0 if same else 0.0)
    p_equivalence = max(float(t.sf((d + delta) / error, freedom)), float(t.sf((delta - d) / error, freedom)))
    half = float(t.ppf(1 - ALPHA, freedom)) * error
    p_difference = 2 * float(t.sf(abs(d) / error, freedom))
    return Comparison(
        name, value, mean, spread, delta, d, d - half, d + half, p_equivalence, p_difference, error, freedom
    )
