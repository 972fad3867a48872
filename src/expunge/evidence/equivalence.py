"""Is the unlearned model one of the retrained ones? Tests of one model against N retrained with other seeds.

For a statistic T:   d = T(unlearned) - mean T(retrained),   se = s sqrt(1 + 1/N)

Spread       s is the standard deviation over the N retrained models, bounded below by the `floor`, the spread of n
             independent samples: sqrt(mean over samples of their variance over the models / n), an average and so
             more precise than s; and by the `resolution`, 1/n: that few models agree to the sample is chance
Freedom      degrees of freedom: N - 1, and up to `TRUST` more where the floor decides, which then counts as that many
             models (f = N - 1 + TRUST min(1, (floor / s)^4), a moderated t-test in the manner of Smyth, 2004)
Left out     where T(j) is the distance of j to the mean of the other models, the N values spread N / (N - 1) times as
             much as a single one varies, and their mean is zero: se = s sqrt(1 + 1/N) (N - 1) / N, which is exact
Different    |d| exceeds the prediction interval of a further retrained model: two-sided t-test, Holm over the family
Equivalent   two one-sided t-tests: d lies within +- delta (Schuirmann, 1987)
Detectable   the smallest |d| that the test detects with a probability of 80 % at the level of Holm's first step
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ALPHA = 0.05
POWER = 0.80
TRUST = 8.0  # models that the floor of the spread counts as


@dataclass(frozen=True)
class Comparison:
    """One statistic of the unlearned model against its values in retrained ones.

    Attributes:
        name: Of the statistic.
        value: T(unlearned).
        reference: Mean T(retrained).
        spread: s.
        delta: The equivalence margin.
        difference: d.
        low: Lower end of the 90 % interval of d, which lies within +- delta where `equivalent`.
        high: Upper end of that interval.
        p_equivalence: The larger of the two one-sided p values.
        p_difference: Two-sided, uncorrected.
        error: Standard error of d.
        freedom: Degrees of freedom of d.
        p_corrected: `p_difference` after Holm's correction over the family.
        detectable: The smallest |d| that is detected with a probability of 80 %.
        original: T(original).
        p_original: Corrected p value of the original.
        share: Of the level of the family, at the first step of Holm's procedure, in (0, 1].
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
    share: float = 1.0

    @property
    def equivalent(self) -> bool:
        """Whether d is shown to lie within +- delta, at 5 %."""
        return self.p_equivalence < ALPHA

    @property
    def differs(self) -> bool:
        """Whether d differs from 0 at 5 % after the correction over the family."""
        return self.p_corrected < ALPHA

    @property
    def tells_original(self) -> bool:
        """Whether the original differs from retraining in this statistic; if not, the statistic has no power."""
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
    """Compare one value with those of at least two retrained models.

    Args:
        name: Of the statistic.
        value: Of the unlearned model.
        retrained: Values of N >= 2 retrained models.
        delta: Equivalence margin, > 0.
        resolution: Lower bound of the spread, see the module; 0 for none.
        floor: Lower bound of the spread that counts as further models, see the module; 0 for none.
        left_out: Whether each retrained value is a distance to the mean of the other models, and `value` the mean
            distance to those means.

    Raises:
        ValueError: For fewer than two retrained values.
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
    """Compare a method over seeds with the retrained model of each seed, by the paired t-test and paired TOST.

    Args:
        name: Of the statistic.
        values: Of the method, one per seed, at least two.
        retrained: Of the retrained model of the same seed.
        delta: Equivalence margin, > 0.
        resolution: Lower bound of the spread of the differences.

    Raises:
        ValueError: For fewer than two pairs, or for lists of different lengths.
    """
    method_values, retrained_values = np.asarray(values, dtype=float), np.asarray(retrained, dtype=float)
    if len(method_values) < 2 or len(method_values) != len(retrained_values):
        raise ValueError(
            f"{name}: at least two pairs are needed, got {len(method_values)} and {len(retrained_values)} values."
        )
    spread = max(float((method_values - retrained_values).std(ddof=1)), resolution)
    error = spread / math.sqrt(len(method_values))
    return _tested(
        name, float(method_values.mean()), float(retrained_values.mean()), spread, delta, error, len(method_values) - 1
    )


def detectable(error: float, freedom: float, share: float) -> float:
    """Smallest |d| that is detected with a probability of `POWER` at the level `ALPHA` times `share` (two-sided)."""
    from scipy.stats import norm, t

    return error * (float(t.isf(ALPHA * share / 2, freedom)) + float(norm.ppf(POWER)))


def _tested(
    name: str, value: float, mean: float, spread: float, delta: float, error: float, freedom: float
) -> Comparison:
    from scipy.stats import t

    d = value - mean
    if error < 1e-12:  # all retrained models agree exactly: so does this model, or it differs
        inside, same = abs(d) < delta, abs(d) < 1e-12
        return Comparison(name, value, mean, 0.0, delta, d, d, d, 0.0 if inside else 1.0, 1.0 if same else 0.0)
    p_equivalence = max(float(t.sf((d + delta) / error, freedom)), float(t.sf((delta - d) / error, freedom)))
    half = float(t.ppf(1 - ALPHA, freedom)) * error
    p_difference = 2 * float(t.sf(abs(d) / error, freedom))
    return Comparison(
        name, value, mean, spread, delta, d, d - half, d + half, p_equivalence, p_difference, error, freedom
    )
