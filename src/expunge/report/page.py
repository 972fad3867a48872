"""The page itself: records in, one HTML file out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup

from expunge.api.record import CellRecord
from expunge.api.result import write_text
from expunge.core.errors import UsageError
from expunge.core.needs import Needs
from expunge.core.version import __version__
from expunge.report import comparison, plots, verdicts
from expunge.report.beside import References, beside
from expunge.report.environment import environment, stylesheet
from expunge.report.summarise import ORIGINAL, REFERENCE, MethodRow, ScenarioBlock, blocks, stages

PICTURES: tuple[tuple[str, str, Callable[[ScenarioBlock], str | None]], ...] = (
    (
        "Forgetting against usefulness",
        "Each point is a method, its lines the spread. The star is the model trained again without the data: the "
        "closer to it, the better. Right of it, the method still remembers.",
        plots.trade_off,
    ),
    (
        "Do forgotten samples look unseen?",
        "Loss of the samples to forget beside that of samples no model has seen (the same scale in every panel). "
        "After good forgetting a panel looks like that of the retrained model: a random part lies among the unseen "
        "samples, a whole class that is gone lies to their right. Further left than there, the method still "
        "remembers; further right, the forgotten samples stick out.",
        plots.loss_distributions,
    ),
    (
        "Where did the forgotten samples go?",
        "The classes that the samples to forget are given now.",
        plots.destinations,
    ),
    (
        "Request after request",
        "The samples were asked for in several requests, one after the other. Accuracy after each: on the samples of "
        "that request, on those of all requests so far (a rise means that something was learned again), on the "
        "training samples that stay, and on unseen ones.",
        plots.requests,
    ),
    (
        "What became of which class?",
        "Samples to forget by true class (rows) and the class they are given now (columns), all seeds together. One "
        "dark column would mean that forgotten samples are all hidden in one class.",
        plots.patterns,
    ),
    (
        "Which layers changed?",
        "Similarity (linear CKA) of each block's activations with those of the original model, from the input to the "
        "logits; 1 is equal.",
        plots.layers,
    ),
    (
        "Where do forgotten samples lie?",
        "Representations of unseen samples (dots, coloured by class) and of the samples to forget (crosses) in the "
        "plane of the two main components of the unseen ones; the first seed, each model in its own plane.",
        plots.representations,
    ),
    (
        "Who else was hurt?",
        "Change of test accuracy per class against the original model, in percentage points.",
        plots.class_effect,
    ),
    (
        "How it went",
        "What each method logged per epoch (mean over seeds), each curve scaled to its largest value.",
        plots.curves,
    ),
)


INTRODUCTION = (
    "A trained model had to forget some of its training samples. Each part below is one choice of samples: how well "
    "every method forgot them, and what it cost. Two rows are there for comparison: “original” is the model before "
    "forgetting, “retrain” the same training from the start without these samples, which is what perfect forgetting "
    "looks like."
)


def build_page(
    cells: Sequence[CellRecord], out: Path, *, title: str, about: str, published: References = (), home: str = ""
) -> Path:
    """home: where the pages of a site lie that this one belongs to."""
    if not cells:
        raise UsageError("there is nothing to report: no cell was given.")
    sections = [section(block, published) for block in blocks(cells)]
    folder = files("expunge.report").joinpath("templates")
    html = (
        environment()
        .get_template("report.html")
        .render(
            title=title,
            about=about,
            home=home,
            introduction=INTRODUCTION,
            sections=sections,
            overall=overall(cells),
            access=access([cell for cell in cells if cell.state == "done"]),
            settings=settings(cells),
            rules=verdicts.RULES,
            tested=verdicts.TESTED,
            version=__version__,
            style=stylesheet(),
            script=Markup(folder.joinpath("report.js").read_text(encoding="utf-8")),
        )
    )
    write_text(out, html)
    return out


def section(block: ScenarioBlock, published: References = ()) -> dict[str, Any]:
    """Everything the template shows of one scenario."""
    reference = block.row(REFERENCE)
    judged = {row.label: verdicts.over_seeds_word(row, block) for row in block.rows}
    drawn = [(name, text, picture) for name, text, draw in PICTURES if (picture := draw(block)) is not None]
    return {
        "label": block.label,
        "headline": verdicts.headline(block),
        "unbeaten": comparison.unbeaten(block),
        "facts": facts(block),
        "columns": block.columns,
        "rows": [{**table_row(row, block, reference), "tested": judged[row.label][0]} for row in block.rows],
        "tested": [(label, *verdict) for label, verdict in judged.items() if verdict[0]],
        "pictures": [{"name": n, "text": t, "svg": Markup(p)} for n, t, p in drawn],
        "seeds": block.seeds,
        "stages": stage_table(block),
        "published": beside(block, published),
    }


def overall(cells: Sequence[CellRecord]) -> dict[str, Any] | None:
    """Ranks over all scenarios and seeds by the gap to the retrained model; None where there are too few of them."""
    done = [cell for cell in cells if cell.state == "done"]
    methods = [cell for cell in done if cell.method.get("name") not in (ORIGINAL, REFERENCE)]
    if not any(score["metric"] == "average_gap" for cell in methods for score in cell.measured):
        return None
    values = comparison.table(done, "average_gap")
    ranks = comparison.ranks(values, "lower")
    if ranks is None:
        return None
    gaps = values.mean()
    return {
        "blocks": ranks.blocks,
        "critical": f"{ranks.critical:.2f}",
        "p": f"{ranks.p:.3f}" if ranks.p >= 0.001 else "below 0.001",
        "left_out": ranks.left_out,
        "svg": Markup(plots.rank_plot(ranks)),
        "rows": [
            {"label": name, "rank": f"{rank:.2f}", "gap": f"{100 * gaps[name]:.1f}"}
            for name, rank in ranks.mean.items()
        ],
    }


def table_row(row: MethodRow, block: ScenarioBlock, reference: MethodRow | None) -> dict[str, Any]:
    """The cells of one method in the table of a scenario."""
    idle = ("seconds", "scale_up") if row.name == ORIGINAL else ()  # the original does nothing, so it has no speed
    numbers = [row.numbers.get(c.metric) if c.metric not in idle else None for c in block.columns]
    texts = [number.text(c) if number else "–" for number, c in zip(numbers, block.columns, strict=True)]
    return {
        "label": row.label,
        "kind": {REFERENCE: "reference", ORIGINAL: "original"}.get(row.name, ""),
        "badges": row.badges,
        "verdict": verdicts.verdict(row, reference),
        "cells": [
            {"text": text, "sort": "" if number is None else repr(number.mean)}
            for text, number in zip(texts, numbers, strict=True)
        ],
        "count": len(row.cells),
        "failed": [cell.error for cell in row.failed],
        "notes": sorted({note for cell in row.cells for note in cell.notes}),
        "status": sorted({cell.status for cell in row.cells} - {"finished"}),
    }


def stage_table(block: ScenarioBlock) -> dict[str, Any] | None:
    """Seconds per stage of the methods that have stages; None where none has."""
    stages_of = {row.label: stages(row) for row in block.rows}
    names = list(dict.fromkeys(name for seconds in stages_of.values() for name in seconds))
    if not names:
        return None
    rows = [
        {"label": label, "cells": [f"{seconds[name]:.2f}" if name in seconds else "–" for name in names]}
        for label, seconds in stages_of.items()
        if seconds
    ]
    return {"names": names, "rows": rows}


def facts(block: ScenarioBlock) -> list[tuple[str, str]]:
    """Label and value of what was forgotten."""
    cell = next((cell for row in block.rows for cell in row.cells), None)
    if cell is None:
        return []
    scenario, data, model = cell.scenario, cell.data, cell.model
    given_options = {k: v for k, v in dict(scenario.get("options", {})).items() if v is not None and v is not False}
    if given_options.get("requests") == 1:  # the usual case needs no words
        del given_options["requests"]
    options = ", ".join(k if v is True else f"{k} = {v}" for k, v in given_options.items())

    def count(facts: dict[str, Any], name: str) -> str:
        return f"{facts[name]:,}" if name in facts else "?"

    number = f"{count(scenario, 'forget')} of {count(data, 'train')} training samples"
    rows = [
        ("Forgotten", f"{number} ({options})" if options else number),
        (
            "Data",
            f"{data.get('name', '?')}: {data.get('classes', '?')} classes, {count(data, 'test')} test samples",
        ),
        ("Model", f"{model.get('name', '?')}, {model.get('parameters', 0):,} parameters"),
        ("Seeds", f"{block.seeds}"),
    ]
    return [(name, text) for name, text in rows if "?" not in text]


def access(cells: Sequence[CellRecord]) -> list[dict[str, Any]]:
    """What each method was handed, once per label."""
    rows = {}
    for cell in cells:
        label = str(cell.method.get("label", ""))
        if label not in rows:
            needs = Needs(**cell.needs)
            block = MethodRow(label, str(cell.method.get("name", "")), [cell], [])
            rows[label] = {
                "label": label,
                "needs": list(needs.describe().values()),
                "badges": block.badges,
                "cite": cell.method.get("cite", ""),
            }
    return [{"titles": list(Needs().describe())}, *rows.values()] if rows else []


def settings(cells: Sequence[CellRecord]) -> list[dict[str, str]]:
    """Options, seeds and versions of every cell, as text."""
    rows = []
    for cell in cells:
        options = dict(cell.method.get("options", {}))
        rows.append(
            {
                "name": f"{cell.scenario.get('label', '')} · {cell.method.get('label', '')}",
                "seeds": ", ".join(f"{k} {v}" for k, v in cell.seeds.items()),
                "options": json.dumps(options, sort_keys=True),
                "id": cell.id,
                "machine": str(cell.provenance.get("hardware", "")),
                "versions": ", ".join(f"{k} {v}" for k, v in dict(cell.provenance.get("versions", {})).items()),
            }
        )
    return rows
