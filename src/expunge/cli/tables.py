"""Tables that fit 80 columns: models down, a few telling numbers across, percent with a spread over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.measure import Measurement
from rich.table import Table

from expunge.api.record import CellRecord
from expunge.cli import console
from expunge.metrics.base import Value

if TYPE_CHECKING:
    import pandas as pd

    from expunge.bench.tuning import Tuned
    from expunge.evidence.verdict import Verdict
    from expunge.report.comparison import Ranks

HEADERS = {
    "forget_accuracy": "forget",
    "forget_true_accuracy": "true",
    "retain_accuracy": "retain",
    "test_accuracy": "test",
    "test_retained_accuracy": "kept",
    "test_ic_error": "IC-ERR",
    "mia_accuracy": "attack",
    "mia_auc": "AUC",
    "average_gap": "gap",
    "seconds": "sec",
    "scale_up": "x",
}
_LEGEND = {
    "test_accuracy": "accuracy in %",
    "forget_true_accuracy": "true: agreement of forget samples with their true labels",
    "test_retained_accuracy": "kept: test accuracy on the other classes",
    "test_ic_error": "IC-ERR: error on the two confused classes",
    "mia_auc": "AUC: attack, 50 % is guessing",
    "average_gap": "gap: to the retrained model",
    "scale_up": "x: times faster than retraining",
}
_PLAIN = ("seconds", "scale_up")
_HIDDEN_BY = {"mia_accuracy": "mia_auc"}  # the published attack repeats what the AUC says


def scores_table(values: Mapping[str, Iterable[Value]], labels: Mapping[str, str] | None = None) -> Table:
    """One row per model of one evaluation."""
    names = labels or {}
    numbers = {
        names.get(model, model): {v.metric: [v.value] for v in rows if not v.group} for model, rows in values.items()
    }
    return _fitting(numbers)


def cells_tables(cells: Sequence[CellRecord]) -> list[Table]:
    """One table per (study, scenario): methods down, mean and spread over seeds across. Failures are shown."""
    studies = {str(cell.scenario.get("label")): cell.study for cell in cells if cell.study}
    groups: dict[tuple[str, str], dict[str, list[CellRecord]]] = {}
    for cell in cells:
        label = str(cell.scenario.get("label"))
        key = (cell.study or studies.get(label, ""), label)  # a failed cell does not know its study
        groups.setdefault(key, {}).setdefault(str(cell.method.get("label")), []).append(cell)
    return [
        _fitting(
            {name: _numbers(cells) for name, cells in methods.items()}, _title(key[1], methods), _failures(methods)
        )
        for key, methods in groups.items()
    ]


def requests_table(rows: Sequence[Mapping[str, float]]) -> Table:
    """One row per request of a stream."""
    names = {"current_accuracy": "this request", "past_accuracy": "all so far", "retain_accuracy": "retain",
             "test_accuracy": "test", "drift": "drift", "seconds": "sec"}  # fmt: skip
    columns = [name for name in names if any(name in row for row in rows)]
    headers = [names[name] for name in columns]
    grid = console.table("request", "samples", *headers, right=("samples", *headers))
    grid.caption, grid.caption_justify = "accuracy in %; drift: of the weights since the first request, in %", "left"
    for row in rows:
        numbers = [_number([row[name]], percent=name not in _PLAIN, spread=False) for name in columns]
        grid.add_row(f"{row['request']:.0f}", f"{row['samples']:.0f}", *numbers)
    return grid


def attacks_table(verdict: Verdict) -> Table:
    """AUC of every attack on the original, the unlearned and, over them, the retrained models."""
    frame = verdict.frame()
    if frame.empty:
        return console.table("attack")
    is_reference = frame["model"].str.startswith("retrained")
    grid = console.table("attack", "original", "unlearned", "95 %", "retrained", right=("original", "unlearned"))
    grid.caption = "AUC in %: 50 tells nothing; above, the samples still look known; below, they stick out"
    grid.caption_justify = "left"
    for signal, rows in frame.groupby("signal", sort=False):
        by_model = rows.set_index("model")
        reference_aucs = rows[is_reference.loc[rows.index]]["auc"]
        span = "-" if reference_aucs.empty else f"{100 * reference_aucs.min():.1f} .. {100 * reference_aucs.max():.1f}"
        unlearned, interval = "-", "-"  # attacks by shadow models are on one of the two only
        if "unlearned" in by_model.index:
            row = by_model.loc["unlearned"]
            unlearned, interval = (
                f"{100 * row['auc']:.1f}",
                f"{100 * row['auc_low']:.1f} .. {100 * row['auc_high']:.1f}",
            )
        before = f"{100 * by_model.loc['original', 'auc']:.1f}" if "original" in by_model.index else "-"
        grid.add_row(str(signal), before, unlearned, interval, span)
    return grid


def ranks_table(ranks: Ranks, metric: str, better: str) -> Table:
    """Methods by mean rank, best first."""
    grid = console.table("method", "mean rank", right=("mean rank",), title=f"{metric}, {better} is better")
    for name, rank in ranks.mean.items():
        grid.add_row(name, f"{rank:.2f}")
    p = f"{ranks.p:.3f}" if ranks.p >= 0.001 else "below 0.001"
    left = f"; not ranked, cells are missing: {', '.join(ranks.left_out)}" if ranks.left_out else ""
    grid.caption = f"{ranks.blocks} blocks; critical difference {ranks.critical:.2f}; Friedman p {p}{left}"
    grid.caption_justify = "left"
    return grid


def pairs_table(rows: pd.DataFrame, best: str, better: str) -> Table:
    """Paired differences of the best method and each other; all pairs are in the CSV."""
    title = f"{best} against"
    grid = console.table(title, "n", "difference", "95 % interval", "p", right=("n", "difference", "p"))
    grid.caption = (
        f"difference: {best} minus the other, {better} is better; p: Wilcoxon, Holm over all {len(rows)} pairs, "
        "- with fewer than 4 blocks"
    )
    grid.caption_justify = "left"
    for row in rows[(rows["first"] == best) | (rows["second"] == best)].itertuples():
        turned = row.second == best
        sign = -1 if turned else 1
        low, high = sorted((sign * row.low, sign * row.high))
        interval = "-" if math.isnan(row.low) else f"{low:.3g} .. {high:.3g}"
        p = "-" if math.isnan(row.p) else f"{row.p:.3f}"
        other = row.first if turned else row.second
        grid.add_row(other, str(row.n), f"{sign * row.difference:.3g}", interval, p)
    return grid


def tuned_table(tuned: Sequence[Tuned], oracle: bool) -> Table:
    """One row per method: the rule's score of the recipe's options and of the chosen ones, and what was chosen."""
    titles = ["method", "as written", "tuned", *(["gap", "regret"] if oracle else []), "options"]
    note = "score of the rule, in points, lower is better"
    if oracle:
        note += "; gap: of the chosen one to retraining; regret: against the best of the same trials by an oracle"
    grid = Table(*titles, title="tuned without a retrained model", caption=note)
    for item in tuned:
        first, best = item.trials[0], item.best
        if best is None or best.score is None:
            grid.add_row(item.label, "failed", "failed", *(["", ""] if oracle else []), item.trials[0].failed)
            continue
        numbers = [first.score, best.score, *([best.gap, item.regret] if oracle else [])]
        chosen = ", ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in best.options.items())
        grid.add_row(item.label, *("failed" if n is None else f"{100 * n:.1f}" for n in numbers), chosen)
    return grid


def failure_reasons(cells: Sequence[CellRecord]) -> list[str]:
    """One line per reason: which methods failed, how often, and why."""
    reasons: dict[str, list[str]] = {}
    for cell in cells:
        if cell.state == "failed" and cell.error:
            reasons.setdefault(cell.error, []).append(str(cell.method.get("label")))
    return [
        f"{', '.join(f'{name} ({names.count(name)}x)' for name in dict.fromkeys(names))} failed: {reason}"
        for reason, names in reasons.items()
    ]


def _title(scenario: str, methods: Mapping[str, Sequence[CellRecord]]) -> str:
    """A failed cell does not know its data and model; any other of the table does."""
    described = [cell for cells in methods.values() for cell in cells if cell.data and cell.model]
    where = f"{described[0].data.get('name')} / {described[0].model.get('name')}: " if described else ""
    return f"{where}forget {scenario}"


def _numbers(cells: Sequence[CellRecord]) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {}
    for cell in cells:
        idle = cell.method.get("name") == "original"  # it does nothing, so it has no speed
        for row in cell.measured:
            if not row["group"] and not (idle and row["metric"] in _PLAIN):
                values.setdefault(row["metric"], []).append(float(row["value"]))
    return values


def _failures(methods: Mapping[str, Sequence[CellRecord]]) -> dict[str, str]:
    counts = {name: (sum(c.state == "failed" for c in cells), len(cells)) for name, cells in methods.items()}
    return {name: f"failed {bad}/{total}" for name, (bad, total) in counts.items() if bad}


def _fitting(
    numbers: Mapping[str, Mapping[str, Sequence[float]]],
    title: str | None = None,
    failures: Mapping[str, str] | None = None,
) -> Table:
    """The table with spreads, or, where the window is too narrow for them, with the means alone: no number is cut."""
    page = console.out()
    full = _grid(numbers, title, failures, spread=True)
    several = any(len(values) > 1 for row in numbers.values() for values in row.values())
    natural = Measurement.get(page, page.options.update(max_width=1000), full).maximum
    if not several or natural <= page.width:
        return full
    means = _grid(numbers, title, failures, spread=False)
    means.caption = f"{means.caption}; means over seeds, the spread is in the report"
    return means


def _grid(
    numbers: Mapping[str, Mapping[str, Sequence[float]]],
    title: str | None = None,
    failures: Mapping[str, str] | None = None,
    *,
    spread: bool,
) -> Table:
    present = {metric for row in numbers.values() for metric in row}
    metrics = [m for m in HEADERS if m in present and _HIDDEN_BY.get(m) not in present]
    headers = [HEADERS[m] for m in metrics]
    grid = console.table("model", *headers, right=tuple(headers), title=title)
    grid.columns[0].overflow = "fold"
    grid.columns[0].min_width = min(24, max(map(len, numbers), default=5))
    grid.caption, grid.caption_justify = "; ".join(_LEGEND[m] for m in metrics if m in _LEGEND), "left"
    for name, row in numbers.items():
        label = f"{name} ({failures[name]})" if failures and name in failures else name
        grid.add_row(label, *(_number(row.get(m, ()), percent=m not in _PLAIN, spread=spread) for m in metrics))
    return grid


def _number(values: Sequence[float], *, percent: bool, spread: bool) -> str:
    """`97.3` for one seed, `97.3±0.4` (sample standard deviation) for several, `-` for none."""
    finite = [v for v in values if not math.isnan(v)]
    if not finite:
        return "-"
    factor = 100 if percent else 1
    mean = f"{statistics.fmean(finite) * factor:.1f}"
    return mean if len(finite) == 1 or not spread else f"{mean}±{statistics.stdev(finite) * factor:.1f}"
