"""Published numbers beside ours: which cells meet, and what differs between the two settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from expunge.report import published
from expunge.report.summarise import COLUMNS, Column, MethodRow, MetricSummary, ScenarioBlock

References = Sequence[tuple[str, str]]  # (paper/table, label of the scenario; "" for all)
_PLAIN = ("seconds", "scale_up", "relearn_time")


def beside(block: ScenarioBlock, references: References) -> list[dict[str, Any]]:
    """What the template shows of every published table that this scenario is compared with."""
    table_names = dict.fromkeys(name for name, scenario in references if scenario in ("", block.label))
    return [_table(block, name) for name in table_names]


def ours(row: MethodRow, metric: str) -> MetricSummary | None:
    """Our mean and spread; an error that was not measured is 1 - the accuracy."""
    if metric in row.numbers or not metric.endswith("_error"):
        return row.numbers.get(metric)
    accuracy = row.numbers.get(f"{metric.removesuffix('_error')}_accuracy")
    return None if accuracy is None else MetricSummary(1 - accuracy.mean, accuracy.spread, accuracy.count)


def _table(block: ScenarioBlock, name: str) -> dict[str, Any]:
    paper, table = published.find(name)
    numbers = [number for number in table.numbers if number.ours]
    metrics = table.metrics() if numbers else []
    columns = [_column(metric) for metric in metrics]
    rows = [
        _row(table, row.label, row.name, row, columns)
        for row in block.rows
        if any((row.name, metric) in {(n.method, n.metric) for n in numbers} | set(table.empty()) for metric in metrics)
    ]
    run_names = {row.name for row in block.rows}
    rows += [
        _row(table, method, method, None, columns)
        for method in dict.fromkeys(n.method for n in numbers)
        if method not in run_names
    ]
    empty = list(table.empty())
    tags = {number.tag for number in table.numbers}
    return {
        "title": table.title,
        "cite": f"{paper.cite} ({paper.url})",
        "source": table.source,
        "theirs": _setting(table),
        "columns": [column.title for column in columns],
        "rows": rows,
        "tags": [(tag, text) for tag, text in paper.tags.items() if tag in tags],
        "notes": [text for text in (table.note, *(_remark(number) for number in numbers if number.note)) if text],
        "more": [_further(number) for number in table.numbers if not number.ours],
        "spread": table.spread,
        "empty": len(empty),
        "not_traced": ", ".join(dict.fromkeys(metric.replace("_", " ") for _, metric in empty)),
    }


def _row(
    table: published.PublishedTable, label: str, method: str, row: MethodRow | None, columns: Sequence[Column]
) -> dict[str, Any]:
    cells = []
    for column in columns:
        ours_text = ours(row, column.metric) if row is not None else None
        published_value = table.cell(method, column.metric)
        cells.append(
            {
                "ours": ours_text.text(column) if ours_text else "",
                "theirs": published_value.text() if published_value else "",
                "tag": published_value.tag if published_value else "",
            }
        )
    return {"label": label, "cells": cells}


def _column(metric: str) -> Column:
    """As in the main table, with the digits that papers print; errors and others that have no column there get one."""
    standard_column = next((column for column in COLUMNS if column.metric == metric), None)
    counted = metric.endswith("_count")
    plain = metric in _PLAIN or counted
    split, _, kind = metric.rpartition("_")
    of_split = next((column for column in COLUMNS if column.metric == f"{split}_accuracy" and split != "mia"), None)
    if of_split is not None and kind in ("accuracy", "error"):
        title = f"{kind}, {of_split.title}"
    else:
        title = standard_column.title if standard_column else metric.replace("_", " ")
    return Column(metric, title, "", percent=not plain, digits=1 if plain else 2)


def _setting(table: published.PublishedTable) -> list[tuple[str, str]]:
    return [
        ("Forgotten", table.scenario),
        ("Data", table.dataset),
        ("Model", table.model),
        ("Seeds", str(table.seeds) if table.seeds else "not known"),
    ]


def _remark(number: published.PublishedValue) -> str:
    return f"{number.method}, {number.metric.replace('_', ' ')}: {number.note}."


def _further(number: published.PublishedValue) -> str:
    unit = {"percent": " %", "fraction": " %", "seconds": " s"}.get(number.unit, "")
    note = f" ({number.note})" if number.note else ""
    return f"{number.method}, {number.metric}: {number.text()}{unit} [{number.tag}]{note}"
