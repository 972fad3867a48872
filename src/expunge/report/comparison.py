"""Which method is better, over scenarios and seeds together: ranks, paired differences, and who is beaten by nobody.

A block is one (scenario, seeds): all methods start there from the same original and are held against the same
retrained model, so they are compared within blocks only.

Ranks      Friedman test over blocks; critical difference of mean ranks by Nemenyi:
           CD = q_{0.05, k} sqrt(k (k + 1) / (6 N)), q of the studentised range divided by sqrt 2
           (Demsar, JMLR 2006)
Pairs      mean difference with its 95 % t-interval, Wilcoxon signed-rank test, p by Holm over all pairs
Pareto     a method is beaten if another is at least as good in gap, test accuracy and seconds, and better in one
Limits     blocks of one data set are not independent: read p as a description, not as proof
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from expunge.api.record import CellRecord
from expunge.core.errors import UsageError, nearest
from expunge.evidence.equivalence import ALPHA
from expunge.numerics.statistics import holm
from expunge.report.summarise import ORIGINAL, REFERENCE, ScenarioBlock

FEWEST_BLOCKS = 4  # below, neither ranks nor tests say anything


def table(cells: Sequence[CellRecord], metric: str) -> pd.DataFrame:
    """Blocks by methods: one metric of every finished cell; without the original and the reference."""
    rows = [
        {
            "scenario": str(cell.scenario.get("label", "")),
            "seeds": ", ".join(map(str, cell.seeds.values())),
            "method": str(cell.method.get("label", "")),
            "value": float(score["value"]),
        }
        for cell in cells
        if cell.state == "done" and cell.method.get("name") not in (ORIGINAL, REFERENCE)
        for score in cell.measured
        if score["metric"] == metric and not score["group"]
    ]
    if not rows:
        metrics = sorted({score["metric"] for cell in cells for score in cell.measured if not score["group"]})
        if metric in metrics:
            raise UsageError(f"no method was finished, so there is nothing of `{metric}` to compare.")
        raise UsageError(f"no method has the metric `{metric}`; {nearest(metric, metrics)}.")
    frame = pd.DataFrame(rows)
    return frame.pivot_table(index=["scenario", "seeds"], columns="method", values="value", sort=False)


def direction(cells: Sequence[CellRecord], metric: str) -> str:
    """`lower` or `higher`. `UsageError` for a metric that has no better and worse by itself."""
    directions = {score["direction"] for cell in cells for score in cell.measured if score["metric"] == metric}
    if directions not in ({"lower"}, {"higher"}):
        raise UsageError(
            f"`{metric}` is neither better when higher nor when lower; compare by average_gap, or another distance."
        )
    return str(directions.pop())


@dataclass(frozen=True)
class Ranks:
    """mean: method -> mean rank over blocks, best first (1 is best). critical: the difference that counts; p: Friedman.

    blocks: how many were complete. left_out: methods without a value in every block they should be in.
    """

    mean: dict[str, float]
    critical: float
    p: float
    blocks: int
    left_out: tuple[str, ...]


def ranks(values: pd.DataFrame, better: str) -> Ranks | None:
    """Mean ranks of the methods that finished in every block; None with fewer than 4 blocks or 3 methods."""
    from scipy.stats import friedmanchisquare, studentized_range

    complete = values.dropna(axis=1)
    count, k = complete.shape
    if count < FEWEST_BLOCKS or k < 3:
        return None
    order = complete.rank(axis=1, ascending=better == "lower")
    mean = order.mean().sort_values(kind="stable")
    different = bool((complete.nunique(axis=1) > 1).any())
    p = float(friedmanchisquare(*(complete[name] for name in complete)).pvalue) if different else 1.0
    quantile = float(studentized_range.ppf(1 - ALPHA, k, np.inf)) / math.sqrt(2)
    critical = quantile * math.sqrt(k * (k + 1) / (6 * count))
    left_out = tuple(str(name) for name in values.columns if name not in complete.columns)
    return Ranks({str(name): float(rank) for name, rank in mean.items()}, critical, p, count, left_out)


def pairs(values: pd.DataFrame) -> pd.DataFrame:
    """first, second, n, difference (first - second, mean over blocks), its 95 % interval low..high, p (Holm).

    n: blocks in which both finished; with fewer than four there is no p.
    """
    from scipy.stats import t, wilcoxon

    rows = []
    for first, second in itertools.combinations(values.columns, 2):
        gap = (values[first] - values[second]).dropna().to_numpy()
        if not len(gap):
            continue
        half = float(t.ppf(0.975, len(gap) - 1) * gap.std(ddof=1) / math.sqrt(len(gap))) if len(gap) > 1 else math.nan
        p = math.nan
        if len(gap) >= FEWEST_BLOCKS:
            p = float(wilcoxon(gap).pvalue) if np.any(gap) else 1.0
        mean = float(gap.mean())
        rows.append((str(first), str(second), len(gap), mean, mean - half, mean + half, p))
    frame = pd.DataFrame(rows, columns=["first", "second", "n", "difference", "low", "high", "p"])
    frame["p"] = holm(frame["p"].to_numpy())
    return frame


def unbeaten(block: ScenarioBlock) -> list[str]:
    """Methods of a scenario that no other beats in gap, test accuracy and seconds together (means over seeds)."""
    points = {}
    for row in block.rows:
        if row.name in (ORIGINAL, REFERENCE):
            continue
        utility = "test_retained_accuracy" if "test_retained_accuracy" in row.numbers else "test_accuracy"
        if not {"average_gap", utility, "seconds"} <= row.numbers.keys():
            continue
        numbers = row.numbers
        points[row.label] = (numbers["average_gap"].mean, -numbers[utility].mean, numbers["seconds"].mean)
    return [
        label
        for label, point in points.items()
        if not any(
            other != point and all(a <= b for a, b in zip(other, point, strict=True)) for other in points.values()
        )
    ]
