"""What would be enough: how many retrained models, samples or shadow models a verdict needs, computed.

A test with N retrained models finds a difference D with a probability of 80 % once
    D >= s sqrt(1 + 1/N) (t(alpha / (2 m), f(N)) + z(0.8)),        m hypotheses, f as in `equivalence`
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from expunge.evidence.equivalence import Comparison, detectable

MOST_REFERENCES = 64


def references_for(one: Comparison, difference: float, references: int, family: int) -> int | None:
    """Number of retrained models, at most 64, with which `one` would find this difference; None if no number does.

    references: how many there are now.
    """
    if one.error <= 0:
        return references
    trusted = one.freedom - (references - 1)
    alone = one.error / math.sqrt(1 + 1 / references)
    for count in range(3, MOST_REFERENCES + 1):
        if detectable(alone * math.sqrt(1 + 1 / count), count - 1 + trusted, family) <= abs(difference):
            return count
    return None


def samples_for(one: Comparison, difference: float, samples: int, family: int) -> int:
    """Number of samples to forget that would do where retrained models do not: the spread falls with its root."""
    spread = detectable(one.spread, math.inf, family)
    return math.ceil(samples * (spread / max(abs(difference), 1e-12)) ** 2)


def held_out_for(half_width: float, margin: float, samples: int) -> int:
    """Number of samples to forget at which an interval of this half width shrinks to the margin."""
    return math.ceil(samples * (half_width / margin) ** 2)


def advice(open_ones: Sequence[Comparison], samples: int, references: int, family: int) -> str:
    """One sentence: what would show that the *original* differs, by the statistic that comes nearest to it."""
    known = [one for one in open_ones if one.error > 0 and abs(one.original - one.reference) > 0]
    if not known:
        return f"no number of retrained models can tell: the original does not differ from them on {samples} samples."
    needs = {one.name: references_for(one, one.original - one.reference, references, family) for one in known}
    able = [one for one in known if needs[one.name] is not None]
    if able:
        best = min(able, key=lambda one: needs[one.name] or 0)
        return (
            f"{needs[best.name]} retrained models (there are {references}) would tell, if the original differs by the "
            f"{abs(best.original - best.reference):.3f} in {best.name} that it shows now."
        )
    best = min(known, key=lambda one: samples_for(one, one.original - one.reference, samples, family))
    count = samples_for(best, best.original - best.reference, samples, family)
    return (
        f"no number of retrained models would: there are {samples} samples to forget, and about {count:,} would be "
        f"needed for the {abs(best.original - best.reference):.3f} in {best.name} that the original shows now."
    )
