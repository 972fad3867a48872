"""`expunge inspect`: how data, models and checkpoints are read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from expunge.api.inspection import ModelInspection, inspect
from expunge.api.saved import literals
from expunge.cli import console
from expunge.data.inspection import Inspection, PartFacts
from expunge.data.inspection import inspect as read_data

MOST = 20  # classes and columns that are listed


def inspect_model(
    model: str,
    checkpoint: Path | None,
    data: str | None,
    test: str | None,
    model_options: Mapping[str, Any],
    options: dict[str, Any],
    device: str,
    as_json: bool,
) -> None:
    """Print what was understood of a model and its checkpoint, as tables or as JSON."""
    answer = inspect(
        model, checkpoint=checkpoint, data=data, test=test, model_options=literals(model_options), device=device,
        **options,
    )  # fmt: skip
    assert isinstance(answer, ModelInspection)  # noqa: S101  # the caller asked whether it is a model
    if as_json:
        console.print_json(answer.record())
        return
    out = console.out()
    for title, rows in ((f"model {answer.source}", answer.rows()), ("checkpoint", answer.checkpoint_rows())):
        if rows:
            grid = console.table("what", "value", title=title)
            for name, value in rows:
                grid.add_row(name, value)
            out.print(grid)
    if answer.blocks:
        grid = console.table(
            "block", "class", "parameters", right=("parameters",), title="blocks, in the order they run"
        )
        for part in (*answer.blocks[:MOST], *([answer.head] if answer.head is not None else [])):
            label = f"{part.name} (head)" if part is answer.head else part.name
            grid.add_row(label, part.kind, f"{part.parameters:,}")
        if len(answer.blocks) > MOST:
            grid.add_row("...", f"{len(answer.blocks) - MOST} more", "")
        out.print(grid)
    for kind, sentences in (("note", answer.notes), ("problem", answer.problems)):
        for sentence in sentences:
            out.print(f"{kind}: {sentence}", soft_wrap=True)


def inspect_data(data: str, options: dict[str, Any], as_json: bool) -> None:
    """Print what was understood of a source, as tables or as JSON."""
    answer = read_data(data, **options)
    if as_json:
        console.print_json(answer.record())
        return
    out = console.out()
    out.print(_parts_table(answer))
    if answer.classes:
        out.print(_classes_table(answer))
    for part in answer.parts[:1]:
        out.print(_columns_table(part))
    for sentence in _sentences(answer):
        out.print(sentence, soft_wrap=True)


def _parts_table(answer: Inspection) -> Any:
    grid = console.table("part", "samples", "shape", "values", "repeated", "also in train",
                         right=("samples", "repeated", "also in train"), title=f"{answer.source}")  # fmt: skip
    for part in answer.parts:
        shape = "x".join(map(str, part.shape)) if part.shape else "-"
        values = "-" if part.lowest is None else f"{part.dtype} {part.lowest:.6g} to {part.highest:.6g}"
        repeated = "not compared" if part.streams else "-" if part.repeated is None else f"{part.repeated:,}"
        shared = f"{answer.shared[part.name]:,}" if part.name in answer.shared else "-"
        grid.add_row(part.name, f"{part.rows:,}", shape, values, repeated, shared)
    return grid


def _classes_table(answer: Inspection) -> Any:
    parts = [part for part in answer.parts if part.counts]
    names = [part.name for part in parts]
    grid = console.table("place", "class", *names, right=("place", *names), title="classes")
    for place, name in enumerate(answer.classes[:MOST]):
        grid.add_row(str(place), name, *(f"{part.counts[place]:,}" for part in parts))
    if len(answer.classes) > MOST:
        rest = [f"{sum(part.counts[MOST:]):,}" for part in parts]
        grid.add_row("...", f"{len(answer.classes) - MOST} more", *rest)
    return grid


def _columns_table(part: PartFacts) -> Any:
    grid = console.table("column", "role", "type", "missing", "distinct", "for example",
                         right=("missing", "distinct"), title=f"columns of {part.name}")  # fmt: skip
    for column in part.columns[:MOST]:
        examples = ", ".join(text if len(text) <= 24 else f"{text[:21]}..." for text in column.examples)
        grid.add_row(column.name, column.role, column.kind, f"{column.missing:,}", f"{column.distinct:,}", examples)
    if len(part.columns) > MOST:
        grid.add_row("...", "", "", "", "", f"{len(part.columns) - MOST} more columns")
    return grid


def _sentences(answer: Inspection) -> list[str]:
    if answer.normalisation is None:
        lines = ["normalisation: none"]
    else:
        mean, std = (", ".join(f"{value:.4g}" for value in values) for values in answer.normalisation)
        lines = [f"normalisation: mean {mean}; deviation {std}"]
    lines += [f"ignored in {part.name}: {sentence}" for part in answer.parts for sentence in part.ignored]
    lines += [f"note: {sentence}" for sentence in answer.notes]
    return lines + [f"problem: {sentence}" for sentence in answer.problems]
