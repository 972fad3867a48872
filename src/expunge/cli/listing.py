"""`expunge list` and `expunge show`: what there is, what it needs, where it comes from."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from typing import TYPE_CHECKING, Any

from expunge.cli import console
from expunge.cli.complete import catalogue
from expunge.core.needs import Needs
from expunge.core.registry import Card

if TYPE_CHECKING:
    from expunge.core.options import OptionInfo


def list_kind(kind: str, as_json: bool) -> None:
    """A table of all names of one kind; imports no implementation."""
    cards = catalogue(kind).cards()
    if as_json:
        console.print_json([card_facts(card) for card in cards])
        return
    grid = console.table("name", "summary", "needs", "paper")
    grid.columns[0].no_wrap = True
    for card in cards:
        grid.add_row(card.name, card.summary, needs_phrase(card.needs), short_citation(card))
    console.out().print(grid)
    singular = kind.removesuffix("s")
    console.out().print(f"{len(cards)} {singular}s. Details: expunge show {singular} NAME", style="dim")


def card_facts(card: Card) -> dict[str, Any]:
    facts = dataclasses.asdict(card)
    facts.pop("target")
    return facts


def needs_phrase(needs: Any) -> str:
    """Few words for a narrow column.

    >>> needs_phrase(Needs(forget="inputs", retain="labels", recipe=True))
    'forget (no labels), retain, recipe'
    """
    if not isinstance(needs, Needs):
        return str(needs or "-")
    words = {"none": None, "inputs": "{} (no labels)", "labels": "{}"}
    parts = [words[getattr(needs, name)] for name in ("forget", "retain", "validation")]
    named = [part.format(name) for part, name in zip(parts, ("forget", "retain", "validation"), strict=True) if part]
    extras = [word for word, wanted in (("recipe", needs.recipe), ("initial weights", needs.initial)) if wanted]
    return ", ".join([*named, *extras]) or "-"


def short_citation(card: Card) -> str:
    """First author, venue, address: `Kurmanji et al., NeurIPS 2023, arXiv:2302.09880`."""
    if card.paper is None:
        return "-"
    authors, _, title = card.paper.cite.partition(":")
    first, *others = authors.replace(" et al.", ",").split(",")
    venue = (title or authors).rsplit(",", 1)[-1].strip()
    return f"{first}{' et al.' if others else ''}, {venue}, {card.paper.url}"


def show(kind: str, name: str, as_json: bool) -> None:
    """Everything about one thing: its equation, options with bounds, presets, needs and citation."""
    registry = catalogue(kind)
    base, _, preset = name.partition("/")
    thing = registry.load(base)
    card = registry.card(base)
    rows = option_rows(thing)
    presets = {key: dict(values) for key, values in getattr(thing, "presets", {}).items()}
    if preset and preset not in presets:
        from expunge.core.errors import unknown

        raise unknown(f"preset of {base}", preset, presets)
    if as_json:
        options = [dataclasses.asdict(row) for row in rows]
        console.print_json(
            {**card_facts(card), "about": about(thing, registry.kind), "options": options, "presets": presets}
        )
        return
    page = console.out()
    page.print(f"{card.name} - {card.summary}", style="bold")
    page.print("")
    if explained := about(thing, registry.kind):
        page.print(f"{explained}\n", soft_wrap=True)
    _print_needs(card)
    if rows:
        page.print(options_table(rows))
    for key, values in presets.items():
        settings = ", ".join(f"{k}={shown(v)}" for k, v in values.items())
        page.print(f"preset {base}/{key}: {settings}")
    if card.paper is not None:
        page.print(f"\nPaper: {card.paper.cite}, {card.paper.url}")


def show_recipe(as_json: bool) -> None:
    """The training options; they are `--name value` of `expunge train` and the keys of a recipe file."""
    from expunge.core.options import describe
    from expunge.training.recipe import Recipe

    rows = describe(Recipe)
    if as_json:
        console.print_json({"about": inspect.getdoc(Recipe), "options": [dataclasses.asdict(row) for row in rows]})
        return
    console.out().print(f"recipe - how a model is trained\n\n{inspect.getdoc(Recipe)}\n", soft_wrap=True)
    console.out().print(options_table(rows))


def about(thing: Any, kind: str) -> str:
    """Methods explain themselves in their module (the equation) and their class; the others in their own docstring."""
    own = inspect.getdoc(thing) if isinstance(thing, type) or inspect.isfunction(thing) else ""
    module = getattr(sys.modules.get(getattr(thing, "__module__", "")), "__doc__", "") if kind == "method" else ""
    return "\n\n".join(part.strip() for part in (module, own) if part)


def option_rows(thing: Any) -> list[OptionInfo]:
    """Options of a dataclass, or the typed arguments of a factory function."""
    from expunge.core.options import OptionInfo, describe

    if isinstance(thing, type) and dataclasses.is_dataclass(thing):
        return describe(thing)
    if not inspect.isfunction(thing):
        facts = dataclasses.asdict(thing) if dataclasses.is_dataclass(thing) and not isinstance(thing, type) else {}
        return [OptionInfo(key, type(value).__name__, value, "", "") for key, value in facts.items()]
    rows = []
    for parameter in inspect.signature(thing).parameters.values():
        default = "required" if parameter.default is parameter.empty else parameter.default
        rows.append(OptionInfo(parameter.name, str(parameter.annotation), default, "", ""))
    return rows


def options_table(rows: list[OptionInfo]) -> Any:
    """Options with their type and bounds; plain facts (of a data set) where nothing is described."""
    described = any(row.description for row in rows)
    headers = ("option", "default", "type", "meaning") if described else ("name", "value", "type")
    grid = console.table(*headers)
    grid.columns[0].no_wrap = True
    for row in rows:
        cells = (row.name, shown(row.default), f"{row.type} {row.bounds}".strip(), row.description)
        grid.add_row(*cells[: len(headers)])
    return grid


def shown(value: Any) -> str:
    """A value as one would type it."""
    if value is None:
        return "none"
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value)) or "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _print_needs(card: Card) -> None:
    if isinstance(card.needs, Needs):
        for what, access in card.needs.describe().items():
            console.out().print(f"  {what:16} {access}")
    elif card.needs:
        console.out().print(f"  needs: {card.needs}")
