"""One page about one label repair: sentences, suspects, confused pairs, classes, neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from expunge.api.result import write_text
from expunge.core.version import __version__
from expunge.metrics.base import ORIGINAL, REFERENCE
from expunge.repair.effects import REPAIRED
from expunge.repair.outcome import Outcome
from expunge.repair.words import notes, sentences, verdict
from expunge.report.plots import COLOURS, INK, PICTURE_STYLE, svg

SHOWN = 15  # samples per table; the files have all
DRAWN = 30  # classes in the picture; the table has all
MODEL_CAPTIONS = {ORIGINAL: "before", REPAIRED: "after", REFERENCE: "trained again"}
SPLIT_CAPTIONS = {"test": "test", "retain": "retained"}
_MARKS = {ORIGINAL: ("#888888", "s", 0.18), REPAIRED: (COLOURS[0], "o", 0.0), REFERENCE: (COLOURS[2], "D", -0.18)}
_GROUPS = {"neighbour": (COLOURS[4], "-"), "random": ("#888888", "--"), "same classes": (COLOURS[0], "-.")}


def build_repair_page(repaired: Outcome, out: Path, *, title: str, facts: Sequence[tuple[str, str]] = ()) -> Path:
    """Write the page, whole or not at all. facts: (label, value) of data and model, shown on top."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    source = files("expunge.repair").joinpath("templates", "repair.html").read_text(encoding="utf-8")
    effects = repaired.effects
    names = repaired.correction.train.store.classes
    split = effects.classes[0]["split"]
    html = environment.from_string(source).render(
        title=title,
        sentences=sentences(repaired),
        notes=notes(repaired),
        facts=[*facts, *_facts(repaired)],
        words=MODEL_CAPTIONS,
        split_words=SPLIT_CAPTIONS,
        models=list(effects.suspects),
        suspects=effects.suspects,
        still=[_still(row, names) for row in effects.still.head(SHOWN).to_dict("records")],
        still_count=len(effects.still),
        pairs=effects.pairs,
        overall=effects.overall,
        classes=effects.classes,
        class_split=split,
        class_count=len(names),
        drawn=DRAWN,
        class_picture=Markup(class_picture(_drawn([row for row in effects.classes if row["split"] == split]))),
        compared=[{**row, "verdict": verdict(row)} for row in effects.compared],
        neighbour_picture=Markup(neighbour_picture(effects.neighbours)) if effects.compared else "",
        hurt=[_hurt(row, names) for row in _most_hurt(effects.neighbours)],
        version=__version__,
        style=Markup(files("expunge.report").joinpath("templates", "report.css").read_text(encoding="utf-8")),
    )
    write_text(out, html)
    return out


def class_picture(rows: Sequence[dict[str, Any]]) -> str:
    """Accuracy per class with its interval: before, after, trained again."""
    with matplotlib.rc_context(PICTURE_STYLE):
        figure = Figure(figsize=(7.2, 0.9 + 0.42 * len(rows)))
        axes = figure.add_subplot()
        for model, (colour, marker, shift) in _MARKS.items():
            points = [(y, row["models"][model]) for y, row in enumerate(rows) if model in row["models"]]
            if not points:
                continue
            shares = np.array([value["share"] for _, value in points])
            error = [
                np.maximum(shares - [value["low"] for _, value in points], 0),
                np.maximum([value["high"] for _, value in points] - shares, 0),
            ]
            axes.errorbar(
                100 * shares, [y - shift for y, _ in points], xerr=100 * np.array(error), color=colour, marker=marker,
                markersize=5, linestyle="none", elinewidth=1.2, label=MODEL_CAPTIONS[model],
            )  # fmt: skip
        axes.set_yticks(range(len(rows)), [row["name"][:24] for row in rows])
        axes.invert_yaxis()
        axes.set_xlabel("accuracy in %")
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return svg(figure, "Accuracy per class before and after the repair, with intervals")


def _drawn(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All classes, or of many those with suspects and those that changed most, in their order."""

    def weight(row: dict[str, Any]) -> tuple[int, int]:
        return row["given"] + row["suggested"], row["turned"]["lost"] + row["turned"]["won"]

    chosen = sorted(rows, key=weight, reverse=True)[:DRAWN]
    return sorted(chosen, key=lambda row: int(row["class"]))


def neighbour_picture(table: pd.DataFrame) -> str:
    """Per group: share of samples whose confidence in their own label fell by at least x."""
    with matplotlib.rc_context(PICTURE_STYLE):
        figure = Figure(figsize=(5.6, 3.4))
        axes = figure.add_subplot()
        axes.axvline(0, color=INK, linewidth=0.7, linestyle=":")
        for group, (colour, dash) in _GROUPS.items():
            fall = np.sort(-table.loc[table["group"] == group, "change"].to_numpy(dtype=float))[::-1]
            if len(fall):
                at_least = 100 * np.arange(1, len(fall) + 1) / len(fall)
                axes.step(100 * fall, at_least, where="post", color=colour, linestyle=dash, label=_label(group))
        axes.set_xlabel("probability of the own label lost, points (below zero: won)")
        axes.set_ylabel("% of samples")
        axes.set_ylim(0, 102)
        axes.legend(loc="best")
        return svg(figure, "How many neighbours and controls lost how much confidence in their own label")


def _label(group: str) -> str:
    return {"neighbour": "neighbours", "random": "random others", "same classes": "others of the same classes"}[group]


def _facts(repaired: Outcome) -> list[tuple[str, str]]:
    facts, train = repaired.result.facts, repaired.correction.train
    sizes = facts["sizes"]
    forgotten = sizes["suspects"] - sizes["relabelled"]
    rows = [
        ("Suspects", f"{sizes['suspects']:,} of {len(train):,} training samples"),
        ("Action", f"{sizes['relabelled']:,} relabelled, {forgotten:,} forgotten"),
        ("Unlearning", facts["method"]),
        ("Seconds", f"{repaired.result.seconds:.1f}"),
    ]
    learn = facts["learn"]
    if learn is not None:
        rows.append(("Learning", f"{learn['epochs']} epochs, {learn['optimizer']}, rate {learn['lr']:g}"))
    return rows


def _most_hurt(table: pd.DataFrame) -> list[dict[str, Any]]:
    rows = table[table["group"] == "neighbour"]
    return rows[rows["change"] < 0].head(SHOWN).to_dict("records") if len(rows) else []


def _hurt(row: dict[str, Any], names: Sequence[str]) -> dict[str, str]:
    return {
        "id": str(row["id"]),
        "label": names[row["label"]],
        "before": names[row["said_before"]],
        "after": names[row["said_after"]],
        "confidence_before": f"{row['confidence_before']:.3f}",
        "confidence_after": f"{row['confidence_after']:.3f}",
        "suspect": str(row["nearest_suspect"]),
    }


def _still(row: dict[str, Any], names: Sequence[str]) -> dict[str, str]:
    return {
        "id": str(row["id"]),
        "given": names[row["given_label"]],
        "suggested": "–" if pd.isna(row["suggested_label"]) else names[int(row["suggested_label"])],
        "quality": "–" if pd.isna(row["label_quality"]) else f"{row['label_quality']:.3f}",
        "confidence": f"{row['confidence_in_given']:.3f}",
    }
