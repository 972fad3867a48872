"""A repair in sentences, the same on the page and on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from expunge.metrics.base import ORIGINAL, REFERENCE
from expunge.repair.effects import REPAIRED
from expunge.repair.measure import Effects
from expunge.repair.outcome import Outcome

_SPLITS = {"test": "test samples", "retain": "retained samples"}


def sentences(repaired: Outcome) -> list[str]:
    """What was done, what became of the suspects, of the confusion, of accuracy, and of the neighbours."""
    effects = repaired.effects
    return [_done(repaired), _suspects(effects), *_confusion(effects), *_overall(effects), *_classes(effects)] + [
        neighbour_sentence(row) for row in effects.compared if row["model"] == REPAIRED
    ]


def percent(share: float) -> str:
    """A share as text in per cent."""
    return f"{100 * share:.1f} %"


def _done(repaired: Outcome) -> str:
    sizes, facts = repaired.result.facts["sizes"], repaired.result.facts
    forgotten = sizes["suspects"] - sizes["relabelled"]
    if facts["action"] == "forget":
        return f"{_counted(forgotten, 'suspect')} forgotten by {facts['method']}."
    first = "without unlearning" if facts["method"] == "none" else f"after unlearning by {facts['method']}"
    rest = f" {_counted(forgotten, 'suspect')} forgotten only, since no label was suggested." if forgotten else ""
    return f"{_counted(sizes['relabelled'], 'suspect')} learned with another label, {first}.{rest}"


def _suspects(effects: Effects) -> str:
    total = sum(effects.suspects[REPAIRED][kind] for kind in ("given", "suggested", "other"))
    before, after = (effects.suspects[model]["given"] for model in (ORIGINAL, REPAIRED))
    reference = effects.suspects.get(REFERENCE)
    reference_text = f" (retrained: {reference['given']})" if reference is not None else ""
    return f"Of {total} suspects, {before} were predicted as labelled before, {after} after{reference_text}."


def _confusion(effects: Effects) -> list[str]:
    rows = [row for row in effects.pairs if row["split"] == effects.pairs[0]["split"]]
    if not rows:
        return []
    row = rows[-1]  # all pairs together, or the only one
    kinds = []
    for key, name in (("ic_error", "IC-ERR"), ("fgt_error", "FGT-ERR")):
        shares = {model: percent(value[key]["share"]) for model, value in row["models"].items()}
        reference_text = f" (retrained: {shares[REFERENCE]})" if REFERENCE in shares else ""
        kinds.append(f"{name} {shares[ORIGINAL]} before, {shares[REPAIRED]} after{reference_text}")
    turned = row["turned"]
    return [
        f"On the {row['samples']:,} {_SPLITS[row['split']]} of {pair_name(row)}: {'; '.join(kinds)}. "
        f"{turned['won']} turned right, {turned['lost']} wrong (p = {turned['p']:.2g})."
    ]


def _overall(effects: Effects) -> list[str]:
    row = effects.overall[0]
    shares = {model: percent(value["share"]) for model, value in row["models"].items()}
    reference_text = f" (retrained: {shares[REFERENCE]})" if REFERENCE in shares else ""
    split = _SPLITS[row["split"]]
    return [f"Accuracy on {split}: {shares[ORIGINAL]} before, {shares[REPAIRED]} after{reference_text}."]


def _classes(effects: Effects) -> list[str]:
    """Classes of the first split that lost beyond chance, Bonferroni over the classes."""
    rows = [row for row in effects.classes if row["split"] == effects.classes[0]["split"]]
    lost = [
        f"{row['name']} ({row['turned']['lost']} lost, {row['turned']['won']} won)"
        for row in rows
        if row["turned"]["lost"] > row["turned"]["won"] and row["turned"]["p"] < 0.05 / len(rows)
    ]
    return [f"Classes that lost beyond chance: {', '.join(lost)}."] if lost else ["No class lost beyond chance."]


def neighbour_sentence(row: dict[str, Any]) -> str:
    """Neighbours against one control, with both differences and their intervals."""
    against = "random retained samples" if row["control"] == "random" else "retained samples of the same classes"
    lost, change = row["lost_difference"], row["change_difference"]
    numbers = []
    if lost is not None:
        numbers.append(
            f"{row['lost'][0]} of {row['right_before'][0]} turned wrong, {row['lost'][1]} of {row['right_before'][1]} "
            f"others (difference {percent(lost['value'])}, {percent(lost['low'])} .. {percent(lost['high'])})"
        )
    numbers.append(
        f"confidence in the own label {100 * row['change'][0]:+.1f} points, others {100 * row['change'][1]:+.1f} "
        f"(difference {100 * change['value']:+.1f}, {100 * change['low']:+.1f} .. {100 * change['high']:+.1f})"
    )
    return f"Neighbours {verdict(row)} {against}: {'; '.join(numbers)}."


def verdict(row: dict[str, Any]) -> str:
    """Half a sentence: an effect is claimed where a 95 % interval leaves out zero."""
    lost, change = row["lost_difference"], row["change_difference"]
    if lost is not None and lost["low"] > 0:
        return "turned wrong more often than"
    if change["high"] < 0:
        return "lost more confidence than"
    if change["low"] > 0:
        return "were helped more than"
    return "show no clear difference from"


def pair_name(row: dict[str, Any]) -> str:
    """The two class names of a confused pair."""
    return " and ".join(row["names"])


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun} was" if number == 1 else f"{number} {noun}s were"


def notes(repaired: Outcome) -> Sequence[str]:
    """Notes of the unlearning and of the measurements."""
    return [*repaired.result.notes, *repaired.effects.notes]
