"""Tables for papers: methods by metrics over seeds, as LaTeX (booktabs), Typst or Markdown.

A cell is the mean over seeds with its sample standard deviation or the half-width of its 95 % t-interval. Bold: the
best method of a column, and every method that is not significantly worse (paired t-test over seeds against the best,
p >= 0.05, uncorrected; with one seed only the best). What is best follows the metric: higher, lower, closest to the
retrained model, closest to one half. The retrained reference itself is never in bold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from scipy import stats

from expunge.api.record import CellRecord
from expunge.bench.tables import frame
from expunge.core.errors import unknown

Spread = Literal["sd", "interval"]
REFERENCE = "retrain"
ALPHA = 0.05

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "±": r"$\pm$", "×": r"$\times$", "–": "--", "—": "---",
}  # fmt: skip
_TYPST = {c: f"\\{c}" for c in "\\#$*_`<>@[]~/"}
_MARKDOWN = {c: f"\\{c}" for c in "\\|*_`<>[]#"}


@dataclass(frozen=True)
class TableEntry:
    """One number as it is printed; `text` is plain, with `±` between mean and spread."""

    text: str
    bold: bool = False


@dataclass(frozen=True)
class PaperTable:
    """One scenario. header: names of the columns after the method's; rows: the method's label and its cells."""

    scenario: str
    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, tuple[TableEntry, ...]], ...]


def paper_tables(
    records: Sequence[CellRecord], *, metrics: Sequence[str] = (), spread: Spread = "sd"
) -> list[PaperTable]:
    """One table per scenario of a study.

    Args:
        records: cells of a study.
        metrics: names of the columns, in this order; empty: every accuracy and gap.
        spread: `sd` (sample standard deviation) or `interval` (half-width of the 95 % t-interval of the mean).

    Raises:
        UsageError: for a metric that no cell has.
    """
    records_frame = frame(records)
    lost = records_frame[records_frame["state"] != "done"].groupby(["scenario", "method"])["cell"].nunique().to_dict()
    values = records_frame[records_frame["state"] == "done"]
    values = values[values["group"].fillna("") == ""]
    known_metrics = list(dict.fromkeys(values["metric"].dropna()))
    for name in metrics:
        if name not in known_metrics:
            raise unknown("metric", name, known_metrics)
    columns = list(metrics) or [name for name in known_metrics if name.endswith(("accuracy", "gap"))]
    scenarios = list(dict.fromkeys(str(record.scenario["label"]) for record in records))
    return [_table(scenario, values, records, columns, spread, lost) for scenario in scenarios]


def to_latex(tables: Sequence[PaperTable]) -> str:
    """`table` floats that need the package booktabs."""
    parts = ["% \\usepackage{booktabs}"]
    for table in tables:
        lines = [
            r"\begin{table}[t]",
            r"  \centering",
            f"  \\caption{{{_escape(table.caption, _LATEX)}}}",
            f"  \\begin{{tabular}}{{l{'r' * len(table.header)}}}",
            r"    \toprule",
            f"    {' & '.join(['Method', *(_escape(name, _LATEX) for name in table.header)])} \\\\",
            r"    \midrule",
        ]
        for label, cells in table.rows:
            texts = [_escape(c.text, _LATEX) for c in cells]
            texts = [rf"\textbf{{{text}}}" if c.bold else text for text, c in zip(texts, cells, strict=True)]
            lines.append(f"    {' & '.join([_escape(label, _LATEX), *texts])} \\\\")
        parts.append("\n".join([*lines, r"    \bottomrule", r"  \end{tabular}", r"\end{table}"]))
    return "\n\n".join(parts) + "\n"


def to_typst(tables: Sequence[PaperTable]) -> str:
    """Typst figures."""
    parts = []
    for table in tables:
        names = ["Method", *table.header]
        rows = [
            f"    {', '.join([f'[{_escape(label, _TYPST)}]', *(_typst(c) for c in cells)])},"
            for label, cells in table.rows
        ]
        head = ", ".join(f"[{_escape(name, _TYPST)}]" for name in names)
        align = ", ".join(["left", *["right"] * len(table.header)])
        parts.append(
            "\n".join(
                [
                    "#figure(",
                    f"  table(columns: {len(names)}, align: ({align}),",
                    f"    table.header({head}),",
                    *rows,
                    f"  ), caption: [{_escape(table.caption, _TYPST)}])",
                ]
            )
        )
    return "\n\n".join(parts) + "\n"


def to_markdown(tables: Sequence[PaperTable]) -> str:
    """Pipe tables, each below its caption."""
    parts = []
    for table in tables:
        names = ["Method", *table.header]
        lines = [f"**{_escape(table.scenario, _MARKDOWN)}.** {_escape(table.caption, _MARKDOWN)}", ""]
        lines.append("| " + " | ".join(_escape(name, _MARKDOWN) for name in names) + " |")
        lines.append("|---" + "|---:" * len(table.header) + "|")
        for label, cells in table.rows:
            texts = [f"**{c.text}**" if c.bold else c.text for c in cells]
            lines.append("| " + " | ".join([_escape(label, _MARKDOWN), *texts]) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _table(
    scenario: str,
    values: pd.DataFrame,
    records: Sequence[CellRecord],
    columns: Sequence[str],
    spread: Spread,
    lost: Mapping[tuple[str, str], int],
) -> PaperTable:
    part = values[values["scenario"] == scenario]
    labels = list(dict.fromkeys(str(r.method["label"]) for r in records if r.scenario["label"] == scenario))
    exact = next((str(r.method["label"]) for r in records if r.method.get("name") == REFERENCE), None)
    seeds = part["cell"].groupby(part["method"]).nunique()
    rows: dict[str, list[TableEntry]] = {label: [] for label in labels}
    for name in columns:
        column = part[part["metric"] == name]
        by_seed = {label: _by_seed(column, label) for label in labels}
        percent = bool((column["unit"] == "fraction").any())
        bold = _best(by_seed, str(column["direction"].iloc[0]) if len(column) else "", exact)
        for label in labels:
            rows[label].append(TableEntry(_number(by_seed[label].to_numpy(), spread, percent), label in bold))
    counts = sorted({int(n) for n in seeds}) or [0]
    many = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])
    what = "sample standard deviation" if spread == "sd" else "half-width of the 95 % t-interval of the mean"
    caption = (
        f"{scenario}: mean over {many} {'seed' if many == '1' else 'seeds'} ± {what}; accuracies and gaps in percent. "
        "Bold: best, and not significantly worse (paired t-test over seeds, p ≥ 0.05)."
    )
    names = tuple(name.replace("_", " ") for name in columns)
    headings = {label: f" ({lost[scenario, label]} lost)" if lost.get((scenario, label)) else "" for label in labels}
    body = tuple((f"{label}{headings[label]}", tuple(cells)) for label, cells in rows.items())
    return PaperTable(scenario, caption, names, body)


def _by_seed(column: pd.DataFrame, label: str) -> pd.Series:
    """Values of one method and metric, by their seeds."""
    rows = column[column["method"] == label]
    keys = [rows[name] for name in ("seed_data", "seed_train", "seed_unlearn", "seed_evaluate")]
    return pd.Series(rows["value"].to_numpy(), index=pd.MultiIndex.from_arrays(keys), dtype=float).dropna()


def _best(by_seed: Mapping[str, pd.Series], direction: str, exact: str | None) -> set[str]:
    """Labels to print in bold: the best, and those that are not significantly worse."""
    costs: dict[str, pd.Series] = {}
    for label, values in by_seed.items():
        if label == exact or not len(values):
            continue
        if direction == "reference":
            if exact is None:
                return set()
            costs[label] = (values - by_seed[exact]).abs().dropna()
        else:
            by_direction = {"higher": -values, "lower": values, "half": (values - 0.5).abs()}
            costs[label] = by_direction.get(direction, values * np.nan)
    means = {label: float(cost.mean()) for label, cost in costs.items() if len(cost) and math.isfinite(cost.mean())}
    if not means:
        return set()
    best = min(means, key=means.__getitem__)
    return {label for label in means if label == best or not _worse(costs[label], costs[best])}


def _worse(cost: pd.Series, best: pd.Series) -> bool:
    """Whether a method's cost is significantly larger than the best's, paired by seeds."""
    difference = (cost - best).dropna().to_numpy()
    if not len(difference) or difference.mean() <= 0:
        return False
    error = difference.std(ddof=1) / math.sqrt(len(difference)) if len(difference) > 1 else 0.0
    if error < 1e-12:  # one seed, or the same difference in all of them
        return True
    return 2 * float(stats.t.sf(difference.mean() / error, len(difference) - 1)) < ALPHA


def _number(values: np.ndarray, spread: Spread, percent: bool) -> str:
    if not len(values):
        return "–"
    scale, digits = (100, 1) if percent else (1, 3)
    mean = f"{scale * values.mean():.{digits}f}"
    if len(values) < 2:
        return mean
    deviation = values.std(ddof=1)
    if spread == "interval":
        deviation *= stats.t.ppf(0.975, len(values) - 1) / math.sqrt(len(values))
    return f"{mean} ± {scale * deviation:.{digits}f}"


def _escape(text: str, table: Mapping[str, str]) -> str:
    return "".join(table.get(c, c) for c in " ".join(text.split()))


def _typst(cell: TableEntry) -> str:
    text = _escape(cell.text, _TYPST)
    return f"[*{text}*]" if cell.bold else f"[{text}]"
