"""Confusion matrices of verdicts, the targets, and every wrong cell."""

from __future__ import annotations

import pandas as pd

from expunge.evidence.verdict import FAILED, LABELS
from expunge.numerics.statistics import clopper_pearson

KINDS = ("retrained", "original", "control", "half known", "destroyed")
FEW = 90  # samples to forget below which a request counts as small
MANY = 100  # samples to forget from which on a verdict is asked for


def wrong(rows: pd.DataFrame) -> pd.Series:
    """Bool per trial: a false alarm, what is not retrained called forgotten, a destroyed one not called damaged."""
    alarm = (rows["kind"] == "retrained") & rows["word"].isin(FAILED)
    praised = (rows["kind"] != "retrained") & (rows["word"] == "forgotten")
    missed = (rows["kind"] == "destroyed") & (rows["word"] != "damaged")
    return alarm | praised | missed


def report(rows: pd.DataFrame, truth: pd.DataFrame | None = None) -> str:
    """The page as Markdown; truth: per pair, p that its originals differ from retrained ones (`trials.differs`)."""
    parts = [
        "# How often the audit is right\n",
        "    python -m benchmarks.calibration run results/calibration\n",
        f"{rows['task'].nunique()} networks outside the catalogue ({', '.join(sorted(rows['task'].unique()))}), "
        f"{rows['request'].nunique()} requests each ({', '.join(rows['request'].unique())}): 9 retrained models, left "
        "out one by one (seeds 100 to 108), 3 untouched originals (seeds 0 to 2), and models made of the first: "
        "negative controls, one that was trained with every second sample to forget, and destroyed ones. Intervals are "
        "exact, 95 %, with trials as units; trials of one task share their models.\n",
        f"{len(rows.groupby(['task', 'request']))} pairs of network and request are in this table.\n",
        targets(rows, truth),
    ]
    for count in sorted(rows["references"].unique()):
        parts.append(f"\n## {count} retrained models\n" if count else "\n## Without retrained models\n")
        parts.append(confusion(rows[rows["references"] == count]))
    parts += ["\n## Every wrong cell\n", wrong_cells(rows)]
    return "\n".join(parts) + "\n"


def confusion(rows: pd.DataFrame) -> str:
    words = [word for word in LABELS if (rows["word"] == word).any()]
    lines = [f"| truth | trials | {' | '.join(words)} |", f"|---|---|{'---|' * len(words)}"]
    for kind in KINDS:
        part = rows[rows["kind"] == kind]
        counts = [str(int((part["word"] == word).sum())) for word in words]
        lines.append(f"| {kind} | {len(part)} | {' | '.join(counts)} |")
    return "\n".join(lines)


def targets(rows: pd.DataFrame, truth: pd.DataFrame | None = None) -> str:
    lines = ["| target | retrained models | share | 95 % interval |", "|---|---|---|---|"]

    def line(what: str, count: int, part: pd.DataFrame, hit: pd.Series) -> None:
        if len(part):
            low, high = clopper_pearson(int(hit.sum()), len(part))
            share = f"{int(hit.sum())} of {len(part)} ({100 * hit.mean():.1f} %)"
            lines.append(f"| {what} | {count} | {share} | {100 * low:.1f} .. {100 * high:.1f} % |")

    for count in sorted(rows["references"].unique()):
        part = rows[rows["references"] == count]
        again = part[part["kind"] == "retrained"]
        line("false alarms on retrained models: at most 5 %", count, again, again["word"].isin(FAILED))
        hidden = part[part["kind"] == "control"]
        line("negative controls called forgotten: none", count, hidden, hidden["word"] == "forgotten")
        lost = part[part["kind"] == "destroyed"]
        line("destroyed models called damaged: at least 95 %", count, lost, lost["word"] == "damaged")
        if count:
            first = part[part["kind"] == "original"]
            line("originals called not forgotten", count, first, first["word"] == "not forgotten")
            if truth is not None:
                differ = truth[truth["p"] < 0.05].set_index(["task", "request"]).index
                real = first[first.set_index(["task", "request"]).index.isin(differ)]
                line("originals that differ (exact test) called not forgotten: at least 95 % with 5", count, real,
                     real["word"] == "not forgotten")  # fmt: skip
                big = real[real["samples"] >= FEW]
                line(f"the same, {FEW} samples or more", count, big, big["word"] == "not forgotten")
            large = again[again["samples"] >= MANY]
            line(f"retrained, {MANY} samples or more, called forgotten: at least 80 % with 5", count, large,
                 large["word"] == "forgotten")  # fmt: skip
    return "\n".join(lines)


def wrong_cells(rows: pd.DataFrame) -> str:
    bad = rows[wrong(rows)]
    if bad.empty:
        return "None."
    lines = [
        "| task | request | truth | model | retrained models | verdict | first reason |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in bad.itertuples():
        reason = str(one.reason).replace("|", "/")[:110]
        lines.append(
            f"| {one.task} | {one.request} | {one.kind} | {one.model} | {one.references} | {one.word} | {reason} |"
        )
    return "\n".join(lines)
