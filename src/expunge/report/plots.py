"""Pictures as inline SVG: colours of Okabe and Ito plus marker shapes, text and axes in the page's own colour.

Deterministic: equal records give equal bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg", force=False)

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from expunge.report.comparison import Ranks
from expunge.report.slim import slim
from expunge.report.summarise import (
    ORIGINAL,
    REFERENCE,
    MethodRow,
    ScenarioBlock,
    confusion,
    grouped,
    history,
    losses,
    per_class,
)

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8C6BB1", "#7A8B2A", "#A0522D", "#607D8B")
MARKERS = "osD^vPX<>hp"  # one more than colours, so that a pair returns after 110 methods only
INK = "#010203"  # replaced by currentColor, so that pictures follow light and dark mode
PICTURE_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "expunge",
    "svg.fonttype": "none",
    "font.size": 10,
    "font.family": "sans-serif",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


def style_of(rows: Sequence[MethodRow]) -> dict[str, tuple[str, str]]:
    """label -> (colour, marker); the references have their own."""
    styles = {}
    number = 0
    for row in rows:
        if row.name == REFERENCE:
            styles[row.label] = (INK, "*")
        elif row.name == ORIGINAL:
            styles[row.label] = ("#888888", "s")
        else:
            styles[row.label] = (COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)])
            number += 1
    return styles


def svg(figure: Figure, alt: str) -> str:
    """The figure as an accessible SVG element without a fixed size."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = text.replace(INK, "currentColor")
    text = re.sub(r'<svg ([^>]*?)width="[^"]+"', r"<svg \1", text, count=1)
    text = re.sub(r'<svg ([^>]*?)height="[^"]+"', r"<svg \1", text, count=1)
    text = slim(text)
    label = alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def trade_off(block: ScenarioBlock) -> str | None:
    """Forget against test accuracy, one point a method; the retrained model is the target."""
    retained = "test_retained_accuracy"
    metric = retained if any(retained in row.numbers for row in block.rows) else "test_accuracy"
    rows = [row for row in block.rows if {"forget_accuracy", metric} <= row.numbers.keys()]
    if not rows:
        return None
    styles = style_of(block.rows)
    with matplotlib.rc_context(PICTURE_STYLE):
        figure = Figure(figsize=(7.2, 4.2))
        axes = figure.add_subplot()
        for row in rows:
            x, y = row.numbers["forget_accuracy"], row.numbers[metric]
            colour, marker = styles[row.label]
            axes.errorbar(
                x.mean, y.mean, xerr=x.spread, yerr=y.spread, color=colour, marker=marker, linestyle="none",
                markersize=15 if row.is_reference else 8, elinewidth=1, alpha=0.9, label=row.label,
                zorder=3 if row.is_reference else 2,
            )  # fmt: skip
        target = next((row for row in rows if row.is_reference), None)
        if target is not None:
            axes.axvline(target.numbers["forget_accuracy"].mean, color=INK, linewidth=0.7, linestyle=":")
            axes.axhline(target.numbers[metric].mean, color=INK, linewidth=0.7, linestyle=":")
        axes.set_xlabel("accuracy on the samples to forget")
        axes.set_ylabel("test accuracy, kept classes" if metric == retained else "test accuracy")
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=9)
        return svg(figure, f"Forget accuracy against test accuracy for {len(rows)} methods, scenario {block.label}")


def loss_distributions(block: ScenarioBlock) -> str | None:
    """Loss of forgotten against unseen samples, one panel a method."""
    rows = [row for row in block.rows if len(losses(row, "forget")) and len(losses(row, "test"))]
    if not rows:
        return None
    bins = np.logspace(-5, 2, 36)

    def draw(axes: Axes, row: MethodRow) -> None:
        for split, colour, name in (("test", "#888888", "unseen"), ("forget", COLOURS[4], "to forget")):
            values = losses(row, split).clip(bins[0], bins[-1])
            shares = np.histogram(values, bins)[0] / len(values)
            axes.stairs(shares, bins, fill=True, color=colour, alpha=0.6, label=name)
        axes.set_xscale("log")
        axes.set_xticks([1e-4, 1e-2, 1, 100])
        axes.set_yticks([])
        axes.minorticks_off()

    return _panels(rows, draw, f"Loss distributions, scenario {block.label}", legend=True, xlabel="loss (nats)")


def curves(block: ScenarioBlock) -> str | None:
    """What each method logged per epoch, scaled to its own largest value."""
    rows = [row for row in block.rows if history(row)]
    if not rows:
        return None

    def draw(axes: Axes, row: MethodRow) -> None:
        for i, (name, values) in enumerate(history(row).items()):
            numbers = np.abs(np.asarray(values, dtype=float))
            top = np.nanmax(numbers) if np.isfinite(numbers).any() else 0.0
            epochs = np.arange(1, len(values) + 1)
            axes.plot(
                epochs, np.asarray(values) / (top or 1.0), color=COLOURS[i % len(COLOURS)],
                marker=MARKERS[i % len(MARKERS)] if len(values) <= 30 else None,  # each is an element of the page
                markersize=3, linewidth=1.2, label=f"{name.replace('_', ' ')} (max {top:.2g})",
            )  # fmt: skip
        axes.legend(fontsize=7, loc="best")
        axes.set_yticks([])
        if max(map(len, history(row).values())) == 1:
            axes.set_xlim(0.5, 1.5)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))

    return _panels(rows, draw, f"Training curves, scenario {block.label}", xlabel="epoch", height=1.8)


def class_effect(block: ScenarioBlock) -> str | None:
    """Change in test accuracy per class against the original: a map of methods by classes."""
    original = block.row(ORIGINAL)
    rows = [row for row in block.rows if row is not original and per_class(row)]
    if original is None or not rows:
        return None
    before = per_class(original)
    names = list(before)
    change = np.array([[per_class(row).get(name, np.nan) - before[name] for name in names] for row in rows])
    with matplotlib.rc_context(PICTURE_STYLE):
        figure = Figure(figsize=(max(4.5, 1.8 + 0.5 * min(len(names), 40)), 0.9 + 0.34 * len(rows)))
        axes = figure.add_subplot()
        axes.imshow(change, cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
        axes.set_yticks(range(len(rows)), [row.label for row in rows])
        axes.set_xticks(range(len(names)), names, rotation=0 if max(map(len, names)) < 4 else 60)
        axes.spines[:].set_visible(False)
        if len(names) <= 20:
            for (i, j), value in np.ndenumerate(change):
                if np.isfinite(value):
                    shade = "#ffffff" if abs(value) > 0.6 else "#222222"
                    axes.text(j, i, f"{100 * value:+.0f}", ha="center", va="center", fontsize=8, color=shade)
        axes.set_xlabel("class (change of test accuracy in points)")
        return svg(figure, f"Change of test accuracy per class and method, scenario {block.label}")


def destinations(block: ScenarioBlock) -> str | None:
    """Which classes the forgotten samples are given now, one bar stack a method."""
    rows = [row for row in block.rows if confusion(row, "forget") is not None]
    if not rows:
        return None
    shares = []
    for row in rows:
        counts = confusion(row, "forget")
        if counts is not None:
            shares.append(counts.sum(0) / max(counts.sum(), 1))
    table = np.array(shares)
    names = [str(n) for n in rows[0].cells[0].data.get("class_names", range(table.shape[1]))]
    top = np.argsort(-table.max(0), kind="stable")[:10]
    with matplotlib.rc_context(PICTURE_STYLE):
        figure = Figure(figsize=(7.2, 0.9 + 0.36 * len(rows)))
        axes = figure.add_subplot()
        left = np.zeros(len(rows))
        for i, number in enumerate(sorted(top)):
            axes.barh(range(len(rows)), table[:, number], left=left, color=COLOURS[i % 10], label=names[number])
            left += table[:, number]
        axes.barh(
            range(len(rows)), 1 - left, left=left, color="#bbbbbb", label="others" if (1 - left).max() > 1e-9 else None
        )
        axes.set_yticks(range(len(rows)), [row.label for row in rows])
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_xlabel("share of the samples to forget, by predicted class")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=8, title="class")
        return svg(figure, f"Predicted classes of the samples to forget, scenario {block.label}")


def requests(block: ScenarioBlock) -> str | None:
    """Accuracies after each request of a stream, one line a method."""
    kinds = {"current": "this request", "past": "all requests so far", "retain": "retained", "test": "unseen"}
    curves = {
        kind: {row.label: grouped(row, f"request_{kind}_accuracy") for row in block.rows if row.name != ORIGINAL}
        for kind in kinds
    }
    drawn = [kind for kind, lines in curves.items() if any(lines.values())]
    if not drawn:
        return None
    return _lines(
        block, [(kinds[kind], curves[kind]) for kind in drawn], f"Accuracy after each request, scenario {block.label}",
        xlabel="request", percent=True,
    )  # fmt: skip


def layers(block: ScenarioBlock) -> str | None:
    """CKA with the original per block of the model, one line a method."""
    kinds = {"forget": "samples to forget", "retain": "retained", "test": "unseen"}
    curves = {kind: {row.label: grouped(row, f"{kind}_layer_cka") for row in block.rows} for kind in kinds}
    curves = {kind: {k: v for k, v in lines.items() if v} for kind, lines in curves.items()}
    for row in block.rows:
        if row.name == ORIGINAL:  # a line at 1
            for lines in curves.values():
                lines.pop(row.label, None)
    drawn = [kind for kind, lines in curves.items() if lines]
    if not drawn:
        return None
    return _lines(
        block, [(kinds[kind], curves[kind]) for kind in drawn], f"CKA per block, scenario {block.label}", xlabel="block"
    )  # fmt: skip


def patterns(block: ScenarioBlock) -> str | None:
    """True against new class of the samples to forget, one map a method; only where several classes are forgotten."""
    rows = [row for row in block.rows if row.name != ORIGINAL and confusion(row, "forget") is not None]
    counts = {row.label: confusion(row, "forget") for row in rows}
    if not rows or all(c is None or (c.sum(1) > 0).sum() < 2 or len(c) > 30 for c in counts.values()):
        return None

    def draw(axes: Axes, row: MethodRow) -> None:
        table = counts[row.label]
        if table is None:
            return
        shares = table / np.maximum(table.sum(1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="equal")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))

    return _panels(rows, draw, f"True and new classes, scenario {block.label}", xlabel="new class", height=2.6)


def rank_plot(ranks: Ranks) -> str:
    """Mean ranks from best to worst; a line through all that lie within the critical difference of each other."""
    names, means = list(ranks.mean), list(ranks.mean.values())
    with matplotlib.rc_context(PICTURE_STYLE):
        figure = Figure(figsize=(7.2, 0.8 + 0.28 * len(names)))
        axes = figure.add_subplot()
        rows = np.arange(len(names))
        axes.barh(rows, means, height=0.55, color=COLOURS[0], alpha=0.75)
        reach = [max(j for j in rows if means[j] - means[i] <= ranks.critical) for i in rows]
        groups = [(i, j) for i, j in enumerate(reach) if j > i and (i == 0 or reach[i - 1] < j)]
        for at, (i, j) in enumerate(groups):
            axes.plot([max(means) + 0.4 + 0.3 * at] * 2, [i - 0.25, j + 0.25], color=INK, linewidth=2)
        axes.set_yticks(rows, names)
        axes.invert_yaxis()
        axes.set_xlim(1, max(means) + 0.7 + 0.3 * len(groups))
        axes.set_xlabel("mean rank (1 is best); no proven difference between methods joined by a line")
        return svg(figure, f"Mean ranks of {len(names)} methods over {ranks.blocks} blocks")


def representations(block: ScenarioBlock) -> str | None:
    """Forgotten among unseen samples in two dimensions, one panel a method."""
    rows = [row for row in block.rows if row.cells and row.cells[0].curves.get("projection")]
    if not rows:
        return None

    def draw(axes: Axes, row: MethodRow) -> None:
        points = row.cells[0].curves["projection"]
        unseen, forget = np.asarray(points["test"], dtype=float), np.asarray(points["forget"], dtype=float)
        if unseen.shape[1] < 3:  # a representation of one dimension has no plane
            return
        # Class by class, not as one cloud of many colours: each is then one element with one style in the page.
        for label in np.unique(unseen[:, -1]):
            x, y = unseen[unseen[:, -1] == label, :2].T
            colour = COLOURS[int(label) % len(COLOURS)]
            axes.plot(x, y, "o", color=colour, markersize=6**0.5, alpha=0.6, markeredgewidth=0)
        axes.plot(forget[:, 0], forget[:, 1], "x", color=INK, markersize=14**0.5, markeredgewidth=0.8)
        axes.set_xticks([])
        axes.set_yticks([])

    return _panels(rows, draw, f"Representations in two dimensions, scenario {block.label}", xlabel="", height=2.2)


def _lines(
    block: ScenarioBlock,
    panels: Sequence[tuple[str, dict[str, dict[str, float]]]],
    alt: str,
    *,
    xlabel: str,
    percent: bool = False,
) -> str:
    """Panels side by side, two a row, with one line a method and one legend. panels: title, label -> x name -> y."""
    styles = style_of(block.rows)
    columns = min(2, len(panels))
    with matplotlib.rc_context(PICTURE_STYLE):
        figure = Figure(figsize=(8.4, 2.7 * -(-len(panels) // columns)))
        grid = figure.subplots(-(-len(panels) // columns), columns, squeeze=False)
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_visible(False)
        for axes, (title, lines) in zip(grid.flat, panels, strict=False):
            for label, values in lines.items():
                if values:
                    colour, marker = styles[label]
                    axes.plot(
                        range(len(values)), list(values.values()), color=colour, marker=marker, markersize=5,
                        linewidth=1.2, label=label,
                    )  # fmt: skip
                    names = [name.rpartition(".")[2] if "." in name else name for name in values]
                    axes.set_xticks(range(len(values)), names, rotation=0 if len(values) < 9 else 90, fontsize=8)
            axes.set_title(title, fontsize=10)
            axes.set_xlabel(xlabel)
            if percent:
                axes.yaxis.set_major_formatter(PercentFormatter(1))
        figure.legend(*grid.flat[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
        return svg(figure, alt)


def _panels(
    rows: Sequence[MethodRow], draw: object, alt: str, *, xlabel: str, legend: bool = False, height: float = 1.5
) -> str:
    """Small multiples, three a row."""
    columns = min(3, len(rows))
    lines = -(-len(rows) // columns)
    # Margins by hand: finding them by drawing every panel twice takes longer than the pictures.
    with matplotlib.rc_context({**PICTURE_STYLE, "figure.constrained_layout.use": False}):
        tall, top = height * lines + 0.9, 0.6 if legend else 0.3
        figure = Figure(figsize=(8.4, tall))
        grid = figure.subplots(lines, columns, squeeze=False)
        figure.subplots_adjust(
            left=0.04, right=0.99, bottom=0.55 / tall, top=1 - top / tall, wspace=0.12, hspace=0.9 / height
        )
        for axes, row in zip(grid.flat, rows, strict=False):
            draw(axes, row)  # type: ignore[operator]
            axes.set_title(row.label, fontsize=10)
        for axes in list(grid.flat)[len(rows) :]:
            axes.set_visible(False)
        for axes in grid[-1]:
            axes.set_xlabel(xlabel)
        if legend:
            figure.legend(*grid.flat[0].get_legend_handles_labels(), loc="upper right", ncols=2, fontsize=9)
        return svg(figure, alt)
