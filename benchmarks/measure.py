"""Medians over interleaved repeats, so that a drifting machine slows both sides alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One figure. limit: what the ratio must stay below (`most`) or reach (`least`); None: for information."""

    topic: str
    what: str
    ratio: float
    detail: str
    most: float | None = None
    least: float | None = None

    @property
    def holds(self) -> bool:
        above = self.most is None or self.ratio <= self.most
        return above and (self.least is None or self.ratio >= self.least)


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def compare(
    ours: Callable[[], object], other: Callable[[], object], repeats: int = 5, *, warm: bool = True
) -> tuple[float, float, float]:
    """Median of the pairwise ratios ours/other, and the median seconds of each.

    warm: one run of both beforehand; minutes of work do without.
    """
    if warm:
        ours()
        other()
    pairs = []
    for turn in range(repeats):
        order = (ours, other) if turn % 2 == 0 else (other, ours)
        times = [seconds(work) for work in order]
        pairs.append(times if turn % 2 == 0 else times[::-1])
    ratio = statistics.median(a / b for a, b in pairs)
    return ratio, statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


def peak_mib() -> float:
    """Largest resident size so far. Not by getrusage: its figure is handed down by the process that started this."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = ["| topic | figure | ratio | target | holds | medians |", "|---|---|---|---|---|---|"]
    for row in rows:
        target = f"<= {row.most:g}" if row.most is not None else f">= {row.least:g}" if row.least is not None else ""
        holds = "" if not target else "yes" if row.holds else "**no**"
        lines.append(f"| {row.topic} | {row.what} | {row.ratio:.2f} | {target} | {holds} | {row.detail} |")
    return "\n".join(lines)
