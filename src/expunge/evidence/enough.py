"""Power analysis: how many retrained models or samples a verdict needs.

A test with N retrained models detects a difference D with a probability of 80 % if
    D >= s sqrt(1 + 1/N) (t(alpha w / 2, f(N)) + z(0.8)),    w: its share of the level (`family`), f as in `equivalence`
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from expunge.evidence.equivalence import Comparison, detectable

MOST_REFERENCES = 64


def references_for(comparison: Comparison, difference: float, references: int) -> int | None:
    """Number of retrained models, 3 to 64, that would detect this difference; None if no number does.

    Args:
        comparison: The test with the present models.
        difference: To be detected, in units of the statistic.
        references: Number of retrained models at present.
    """
    if comparison.error <= 0:
        return references
    extra_freedom = comparison.freedom - (references - 1)
    spread = comparison.error / math.sqrt(1 + 1 / references)
    for count in range(3, MOST_REFERENCES + 1):
        error, freedom = spread * math.sqrt(1 + 1 / count), count - 1 + extra_freedom
        if detectable(error, freedom, comparison.share) <= abs(difference):
            return count
    return None


def samples_for(comparison: Comparison, difference: float, samples: int) -> int:
    """Number of forget samples that would detect this difference: the spread falls with the square root of it."""
    spread = detectable(comparison.spread, math.inf, comparison.share)
    return math.ceil(samples * (spread / max(abs(difference), 1e-12)) ** 2)


def held_out_for(half_width: float, margin: float, samples: int) -> int:
    """Number of forget samples at which an interval of this half width shrinks to the margin."""
    return math.ceil(samples * (half_width / margin) ** 2)


def advice(open_comparisons: Sequence[Comparison], samples: int, references: int) -> str:
    """One sentence: what it would take to detect the *original*, by the statistic that comes closest to it."""
    candidates = [
        comparison
        for comparison in open_comparisons
        if comparison.error > 0 and abs(comparison.original - comparison.reference) > 0
    ]
    if not candidates:
        return f"no number of retrained models would be enough: on {samples} samples the original does not differ."
    needs = {
        comparison.name: references_for(comparison, comparison.original - comparison.reference, references)
        for comparison in candidates
    }
    able = [comparison for comparison in candidates if needs[comparison.name] is not None]
    if able:
        best = min(able, key=lambda comparison: needs[comparison.name] or 0)
        return (
            f"{needs[best.name]} retrained models (there are {references}) would be enough if the original really "
            f"differs by the present {abs(best.original - best.reference):.3f} in {best.name}."
        )
    best = min(
        candidates,
        key=lambda comparison: samples_for(comparison, comparison.original - comparison.reference, samples),
    )
    count = samples_for(best, best.original - best.reference, samples)
    return (
        f"no number of retrained models would be enough: there are {samples} samples to forget, and about {count:,} "
        f"are needed to detect the present {abs(best.original - best.reference):.3f} in {best.name}."
    )
