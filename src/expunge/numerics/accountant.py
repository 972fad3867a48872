"""What noise buys: (epsilon, delta) of Gaussian noise, of noisy steps in a ball, and of noisy steps of bounded length.

Gaussian      N(0, s^2) added to two points at most D apart, m = D / s:
                  delta(epsilon) = Q(epsilon / m - m / 2) - e^epsilon Q(epsilon / m + m / 2),   Q the upper normal tail
In a ball     steps x <- clip(anything that reads R alone, to norm C) + N(0, s^2): whatever the two starts were, each
              step multiplies the divergence by at most delta(epsilon) with m = 2 C / s (contraction of the hockey-stick
              divergence; Asoodeh, Diaz, Calmon, arXiv:2012.11035), so T of them give delta(epsilon)^T
Bounded       x <- q x - lr clip(g, G) + N(0, s^2) from starts at most D apart, 0 < q <= 1, same batches: one step puts
              two points from distance d at most q d + 2 lr G apart. T steps are as private as one Gaussian with
                  m = B / (s |w|),   w_t = q^(T - t),   B = q^T D + 2 lr G sum_t w_t
              (shifted interpolation, Bok, Su, Altschuler, arXiv:2403.00278: shifts a_t with w.a = B, |a| least)
"""

from __future__ import annotations

import math
from collections.abc import Callable

from scipy.stats import norm

from expunge.core.errors import UsageError


def gaussian_delta(m: float, epsilon: float) -> float:
    """delta in [0, 1] at `epsilon` >= 0 of Gaussian noise, m >= 0 the distance in standard deviations.

    >>> round(gaussian_delta(2.0, 1.0), 4)
    0.5099
    """
    if m == 0:
        return 0.0
    value = norm.sf(epsilon / m - m / 2) - math.exp(epsilon + norm.logsf(epsilon / m + m / 2))
    return float(min(max(value, 0.0), 1.0))


def largest_m(epsilon: float, delta: float) -> float:
    """The distance in standard deviations up to which Gaussian noise gives (epsilon, delta); delta in (0, 1)."""
    return _largest(lambda m: gaussian_delta(m, epsilon), delta)


def ball_noise(epsilon: float, delta: float, steps: int, radius: float) -> float:
    """Standard deviation s with which `steps` noisy steps in a ball of `radius` give (epsilon, delta)."""
    if steps < 1:
        raise UsageError(f"a guarantee takes at least one noisy step, got {steps}.")
    return 2 * radius / largest_m(epsilon, delta ** (1 / steps))


def bounded_noise(
    epsilon: float, delta: float, steps: int, radius: float, lr: float, clip: float, decay: float = 0.0
) -> float:
    """Standard deviation s with which `steps` noisy steps of bounded length give (epsilon, delta).

    Args:
        epsilon: Of the guarantee, >= 0.
        delta: Of the guarantee, in (0, 1).
        steps: T, >= 1.
        radius: Norm that the start is clipped to; two starts are at most twice that apart.
        lr: Learning rate.
        clip: G, the norm that gradients are clipped to.
        decay: Weight decay; q = 1 - lr decay must lie in (0, 1].
    """
    q = 1 - lr * decay
    if steps < 1 or not 0 < q <= 1:
        raise UsageError(
            f"a guarantee takes at least one noisy step and lr x decay below 1, got {steps} and {1 - q:g}."
        )
    weights = [q ** (steps - t) for t in range(1, steps + 1)]
    reach = q**steps * 2 * radius + 2 * lr * clip * sum(weights)
    return reach / (math.sqrt(sum(w * w for w in weights)) * largest_m(epsilon, delta))


def _largest(delta_of: Callable[[float], float], delta: float) -> float:
    """The largest m with delta_of(m) <= delta, by bisection; delta_of grows with m."""
    low, high = 0.0, 1.0
    while delta_of(high) <= delta:
        low, high = high, 2 * high
        if high > 1e6:
            break
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if delta_of(middle) <= delta else (low, middle)
    return low
