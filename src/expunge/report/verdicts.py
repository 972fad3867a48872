"""Plain words from numbers, by fixed rules that the page prints. They order attention; they are not a test.

Compared with the retrained model: a difference below `CLOSE` in accuracy counts as the same.
"""

from __future__ import annotations

from expunge.api.record import CellRecord
from expunge.core.options import build
from expunge.evidence.equivalence import ALPHA
from expunge.evidence.verdict import Margins, over_seeds
from expunge.report.summarise import ORIGINAL, REFERENCE, MethodRow, ScenarioBlock

CLOSE = 0.05
RULES = (
    f"A method is called close when its forget and test accuracy are both within {CLOSE:.0%} of the retrained model's; "
    f"it still remembers when forget accuracy is more than {CLOSE:.0%} above it, over-forgets when more than "
    f"{CLOSE:.0%} below, and damages the model when test accuracy is more than {CLOSE:.0%} below the retrained one. "
    "These rules order attention; they are no statistical test."
)
_MARGINS = build(Margins, {}, "margins")
FEWEST = 3  # seeds below which nothing is tested
TESTED = (
    f"Paired tests over seeds, against the retrained model of each. Forgotten: forget, retain and test accuracy and "
    f"the attack's AUC are all shown to lie within {_MARGINS.accuracy:g} of it. Not forgotten, over-forgotten, "
    f"damaged: one of them is shown to differ (at {ALPHA:.0%}, Holm). Not enough evidence: neither; more seeds help."
)
_STATISTICS = {
    "forget accuracy": ("forget_accuracy",),
    "loss attack AUC": ("mia_auc",),
    "retain accuracy": ("retain_accuracy",),
    "test accuracy": ("test_retained_accuracy", "test_accuracy"),  # the first that is there
}


def over_seeds_word(row: MethodRow, block: ScenarioBlock) -> tuple[str, list[str]]:
    """(word, reasons) of one method by tests over seeds; ("", []) where there are too few, or no reference."""
    parts = [block.row(ORIGINAL), row, block.row(REFERENCE)]
    if row.name in (ORIGINAL, REFERENCE) or any(part is None for part in parts):
        return "", []
    by_seed = [{_seeds(cell): _numbers(cell) for cell in part.cells} for part in parts if part is not None]
    shared = sorted(set(by_seed[0]) & set(by_seed[1]) & set(by_seed[2]))
    if len(shared) < FEWEST or not by_seed[1][shared[0]]:
        return "", []
    sizes = {"forget": block.facts.get("forget"), "retain": block.facts.get("retain")}
    sizes["test"] = row.cells[0].data.get("test")
    fine = {f"{name} accuracy": 1 / size for name, size in sizes.items() if size}
    original, unlearned, retrained = ([part[seeds] for seeds in shared] for part in by_seed)
    label, reasons, _ = over_seeds(original, unlearned, retrained, margins=_MARGINS, resolution=fine)
    return label, reasons


def _seeds(cell: CellRecord) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(cell.seeds.items()))


def _numbers(cell: CellRecord) -> dict[str, float]:
    values = {score["metric"]: float(score["value"]) for score in cell.measured if not score["group"]}
    numbers = {}
    for name, metrics in _STATISTICS.items():
        metric = next((metric for metric in metrics if metric in values), None)
        if metric is not None:
            numbers[name] = values[metric]
    return numbers


def verdict(row: MethodRow, reference: MethodRow | None) -> str:
    """One or two words for one method; empty for the references or where a number is missing."""
    if not row.cells:
        return "not finished" if row.failed and all(cell.status == "missing" for cell in row.failed) else "failed"
    if reference is None or row.name in (REFERENCE, ORIGINAL):
        return ""
    try:
        forget = row.numbers["forget_accuracy"].mean - reference.numbers["forget_accuracy"].mean
        test = row.numbers["test_accuracy"].mean - reference.numbers["test_accuracy"].mean
        # Where whole classes go, losing them is no damage: the classes that stay decide.
        if "test_retained_accuracy" in row.numbers:
            test = row.numbers["test_retained_accuracy"].mean - reference.numbers["test_retained_accuracy"].mean
    except KeyError:
        return ""
    labels = []
    if forget > CLOSE:
        labels.append("still remembers")
    elif forget < -CLOSE:
        labels.append("over-forgets")
    if test < -CLOSE:
        labels.append("damages the model")
    return ", ".join(labels) or "close"


def headline(block: ScenarioBlock) -> str:
    """One or two sentences for a reader in a hurry."""
    reference = block.row(REFERENCE)
    methods = [row for row in block.rows if row.name not in (REFERENCE, ORIGINAL)]
    if reference is None:
        return "There is no retrained model to compare with, so only the numbers are shown."
    if not methods:
        return "Only the reference was run."
    groups: dict[str, list[str]] = {}
    for row in methods:
        for label in verdict(row, reference).split(", "):
            groups.setdefault(label, []).append(row.label)
    sentences = []
    close = [row for row in methods if verdict(row, reference) == "close"]
    if close:
        best = min(close, key=lambda row: row.numbers["average_gap"].mean if "average_gap" in row.numbers else 1.0)
        gap = f" (gap {best.numbers['average_gap'].mean:.1%})" if "average_gap" in best.numbers else ""
        also_close = [row.label for row in close if row is not best]
        sentences.append(
            f"{best.label} comes closest to training again without the data{gap}"
            + (f"; {_list(also_close)} {'is' if len(also_close) == 1 else 'are'} close, too" if also_close else "")
            + "."
        )
    else:
        sentences.append("No method comes close to training again without the data.")
    for label, text in (
        ("still remembers", "still know part of what should be gone"),
        ("over-forgets", "forget more than training again would, which can be seen from outside"),
        ("damages the model", "damage what should stay"),
        ("failed", "failed"),
        ("not finished", "have not finished yet"),
    ):
        if label in groups:
            single = len(groups[label]) == 1
            sentences.append(f"{_list(groups[label])} {_singular(text) if single else text}.")
    return " ".join(sentences)


def _list(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _singular(text: str) -> str:
    first, _, rest = text.partition(" ")
    if first == "failed":
        return text
    if first == "have":
        return f"has {rest}"
    return f"still knows {rest.partition(' ')[2]}" if first == "still" else f"{first}s {rest}"
