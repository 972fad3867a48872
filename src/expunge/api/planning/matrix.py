"""What each method needs, is meant for, costs and was measured to do, in one table made from the catalogue.

docs/methods.md is `expunge list methods --markdown`; a test holds it to that.
"""

from __future__ import annotations

from expunge.api.planning.ranks import measured, rank_of
from expunge.api.planning.situation import Situation
from expunge.core.needs import Needs
from expunge.core.options import build
from expunge.core.registry import Card
from expunge.methods import METHODS
from expunge.methods.base import make_method
from expunge.training.recipe import Recipe

# What costs are counted on: a tenth of 10,000 samples, ten classes, a training of twenty epochs.
SIZES = {"forget": 1000, "retain": 9000, "classes": 10}
REFERENCE = build(Situation, {**SIZES, "recipe": build(Recipe, {"epochs": 20, "batch_size": 128})})
FORWARD = 1 / 3  # of a training step, which has a backward pass of about twice a forward one

_HEAD = """# Methods

Which method can be used with what is at hand, what it is meant for, and what it costs. This page is made from the
catalogue: `expunge list methods --markdown > docs/methods.md`. `expunge list methods --for class --without-retain`
filters the same way, `expunge show method NAME` has the equation, the options and the settings of the papers.

- **forget, retain, held-out**: what is handed to the method; *inputs* means without labels. Some methods read less or
  more with other options (`expunge show`).
- **meant for**: a whole *class*, single *samples*, wrong *labels*. Controls are meant for nothing: they hide knowledge.
- **cost**: network passes with default options, as a share of one retraining, counted for 1,000 of 10,000 samples, ten
  classes and a training of 20 epochs; "<=" where a method may stop earlier, "-" where it cannot be counted so.
- **class, samples**: measured on networks the methods were not made for, with default options: the share of results as
  near to retraining as retrained models are to each other; "-" where nothing was measured.

"""


def matrix() -> str:
    """Markdown: a page with one row per built-in or installed method, in the order of the catalogue."""
    columns = ("method", "forget", "retain", "held-out", "also", "meant for", "cost", "class", "samples", "paper")
    lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
    lines += [" | ".join(row(METHODS.card(name))) for name in METHODS.usable()]
    return _HEAD + "\n".join(f"| {line} |" for line in lines) + "\n"


def row(card: Card) -> tuple[str, ...]:
    """The cells of one method."""
    needs = card.needs if isinstance(card.needs, Needs) else Needs()
    words = {"none": "-", "inputs": "inputs", "labels": "labels"}
    phrases = needs.describe()
    retain = phrases["retain"] if needs.labelled else words[needs.retain]
    also = phrases["also"].replace("training recipe", "recipe")
    address = card.paper.url if card.paper is not None else "-"
    return (
        f"`{card.name}`", words[needs.forget], retain, words[needs.validation], also,
        ", ".join(card.requests) or "-", cost(card.name), rank(card.name, "class"), rank(card.name, "samples"), address,
    )  # fmt: skip


def cost(name: str) -> str:
    """Passes of a method with its defaults as a share of one retraining, in words."""
    work = make_method(name).cost(REFERENCE.sizes)
    whole = make_method("retrain").cost(REFERENCE.sizes)
    if work is None or whole is None or (name != "original" and not work.step_samples + work.forward_samples):
        return "-" if work is None or "control" not in METHODS.card(name).tags else "0 %"
    share = (work.step_samples + FORWARD * work.forward_samples) / whole.step_samples
    if 0 < share < 0.001:
        return "under 0.1 %"
    shown = f"{share:.0%}" if share >= 0.01 or not share else f"{share:.1%}"
    return ("<= " if work.bound == "at most" else "") + shown.replace("%", " %")


def rank(name: str, kind: str) -> str:
    """Share of good results where the method was measured on requests of this kind."""
    at = build(Situation, {**SIZES, "whole_class": kind == "class"})
    found = rank_of(name, at, measured())
    return "-" if found is None else f"{found.good:.0%} of {found.cells}".replace("%", " %")
