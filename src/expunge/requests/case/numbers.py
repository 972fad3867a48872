"""The numbers of a case as rows of text: how well it was forgotten, and what that cost each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from expunge.evidence.explain import STATISTIC_MEANINGS
from expunge.numerics.statistics import wilson

_MANY = 10_000  # samples from which on an interval is so narrow that one decimal hides it
_MOST_CLASSES = 20  # shown; of more, those that lost most
Columns = list[tuple[str, bool]]
Rows = list[list[str | tuple[str, str]]]


def main_numbers(audit: Mapping[str, Any]) -> tuple[Columns, Rows]:
    """Every statistic of an audit: a sentence, before, after with its 95 % interval, and models trained again."""
    before, after = audit["statistics"]["original"], audit["statistics"]["unlearned"]
    tests = {one["name"]: one for one in audit["tests"]}
    again = audit["basis"] == "retrained"
    rows: Rows = []
    for name, text in STATISTIC_MEANINGS.items():
        tested = tests.get(name)
        value = after.get(name, tested["value"] if tested else None)
        if value is None:
            continue
        shown: list[str | tuple[str, str]] = [
            (name[:1].upper() + name[1:], text), _number(name, before.get(name)), _number(name, value),
            _interval(name, value, audit),
        ]  # fmt: skip
        if again:
            reference = "–" if tested is None else _number(name, tested["reference"])
            shown.append(reference)
        rows.append(shown)
    columns = [("Number", False), ("Before", True), ("After", True), ("95 % interval", True)]
    return [*columns, ("Trained again", True)] if again else columns, rows


def class_table(rows: Sequence[Mapping[str, Any]]) -> tuple[Columns, Rows, int]:
    """One row per class: accuracies on retained and unseen data, the change on unseen data; how many are left out."""
    by_class: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        by_class.setdefault(row["class"], {})[row["data"]] = row
    names = list(by_class)
    if len(names) > _MOST_CLASSES:
        names = sorted(names, key=lambda name: _worst(by_class[name]))[:_MOST_CLASSES]
    data = [kind for kind in ("retain", "test") if any(row["data"] == kind for row in rows)]
    columns = [("Class", False)]
    for kind in data:
        columns += [(f"{_KINDS[kind]}, before", True), ("after", True), ("change", True)]
    shown: Rows = []
    for name in names:
        line: list[str | tuple[str, str]] = [f"{name} (deleted)" if _gone(by_class[name]) else name]
        for kind in data:
            line += _change(by_class[name].get(kind))
        shown.append(line)
    return columns, shown, len(by_class) - len(names)


def overall(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sentences: accuracy over all classes that stay, and which classes clearly lost."""
    if not rows:
        return ["The effect on single classes was not measured."]
    sentences = []
    for kind, noun in (("retain", "the training samples that stay"), ("test", "unseen samples")):
        mine = [row for row in rows if row["data"] == kind and not row["gone"]]
        total = sum(row["samples"] for row in mine)
        if total:
            before, after = (sum(row[key] * row["samples"] for row in mine) / total for key in ("before", "after"))
            sentences.append(f"Accuracy on {noun}: {percent(before)} before, {percent(after)} after.")
    hurt = list(dict.fromkeys(row["class"] for row in rows if row["high"] < 0 and not row["gone"]))
    some = ", ".join(hurt[:_MOST_CLASSES]) + (
        f" and {len(hurt) - _MOST_CLASSES} more" if len(hurt) > _MOST_CLASSES else ""
    )
    gone = list(dict.fromkeys(row["class"] for row in rows if row["gone"]))
    sentences.append(
        f"Classes that are clearly less accurate than before (at 95 %, for each class alone): {some}."
        if hurt
        else "No class is clearly less accurate than before (at 95 %, for each class alone)."
    )
    if gone:
        sentences.append(
            f"Deleted as a whole, so that the model was meant to lose it: {', '.join(gone[:_MOST_CLASSES])}."
        )
    return sentences


def percent(share: float) -> str:
    """A share as text in per cent."""
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


_KINDS = {"retain": "Kept data", "test": "Unseen data"}


def _number(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    return percent(value) if name.endswith("accuracy") or name.startswith("share") else f"{value:.3f}"


def _interval(name: str, value: float, audit: Mapping[str, Any]) -> str:
    """An accuracy's is Wilson's, an attack's that of DeLong."""
    if name.endswith("AUC"):
        signal = name.removesuffix(" AUC").removesuffix(" attack")
        for row in audit["attacks"]:
            if (row["model"], row["signal"]) == ("unlearned", signal) and row["auc_low"] is not None:
                return f"{row['auc_low']:.3f} to {row['auc_high']:.3f}"
        return "–"
    size = audit.get("samples", {}).get(name)
    if not size:
        return "–"
    low, high = wilson(round(value * size), size)
    digits = 1 if size < _MANY else 2
    return f"{100 * low:.{digits}f} to {100 * high:.{digits}f} %"


def _change(row: Mapping[str, Any] | None) -> list[str | tuple[str, str]]:
    if row is None:
        return ["–", "–", "–"]
    change, low, high = (f"{100 * row[key]:+z.1f}" for key in ("change", "low", "high"))  # z: no minus before zero
    return [percent(row["before"]), percent(row["after"]), f"{change} ({low} to {high})"]


def _gone(parts: Mapping[str, Mapping[str, Any]]) -> bool:
    return any(row["gone"] for row in parts.values())


def _worst(parts: Mapping[str, Mapping[str, Any]]) -> float:
    return min(float(row["change"]) for row in parts.values())
