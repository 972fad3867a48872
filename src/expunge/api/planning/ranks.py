"""What was measured of the methods, with their default options, on networks that they were not made for.

`methods/ranks.json` holds, per method and kind of request, the share of good results, the gap to retraining and the
cost; `python -m benchmarks.worlds ranks` writes it from results/worlds/cells.csv. Without the file nothing is known,
and the documented order of `choices` stands.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

from expunge.api.planning.situation import Situation
from expunge.core.errors import ExpungeError

FEW = 64  # samples up to which a request is like the smallest that were measured
# Requests that were measured, by what they are like.
LIKE: Mapping[str, tuple[str, ...]] = {
    "few": ("few", "random-1"),
    "samples": ("random-1", "random-10", "user", "duplicates", "half-class"),
    "class": ("class",),
    "labels": ("wrong",),
}


@dataclass(frozen=True)
class Rank:
    """good: share of results as near to retraining as retrained models are to each other, in [0, 1].

    gap: mean difference to retraining in percentage points, None without a result. cost: CPU time over that of a
    retraining. cells: how many results it is made of.
    """

    good: float
    gap: float | None
    cost: float
    cells: int

    def sentence(self, method: str) -> str:
        """Evidence in words."""
        gap = "" if self.gap is None else f", {self.gap:.1f} points from retraining on average"
        return (
            f"{method}: {self.good:.0%} of {self.cells} results on networks it was not made for were as good as "
            f"retraining{gap}, at {self.cost:.0%} of its CPU time"
        )


Ranks = Mapping[str, Mapping[str, Rank]]


@functools.cache
def measured() -> Ranks:
    """Method -> request -> rank; empty where nothing is packaged. Raises `ExpungeError` for a damaged file."""
    path = resources.files("expunge.methods") / "ranks.json"
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {
            method: {
                request: Rank(float(one["good"]), one["gap"], float(one["cost"]), int(one["cells"]))
                for request, one in requests.items()
            }
            for method, requests in content.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ExpungeError(f"{path} is damaged ({error}); install expunge again, or write it anew.") from None


def rank_of(method: str, at: Situation, ranks: Ranks) -> Rank | None:
    """Over all measured requests that are like this one; None where there are none."""
    kind = "few" if at.kind == "samples" and at.forget <= FEW else at.kind
    known = [ranks[method][request] for request in LIKE[kind] if request in ranks.get(method, {})]
    cells = sum(one.cells for one in known)
    if not cells:
        return None
    gaps = [(one.gap, one.cells) for one in known if one.gap is not None]
    return Rank(
        good=sum(one.good * one.cells for one in known) / cells,
        gap=sum(gap * count for gap, count in gaps) / sum(count for _, count in gaps) if gaps else None,
        cost=sum(one.cost * one.cells for one in known) / cells,
        cells=cells,
    )
