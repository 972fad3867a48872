"""`expunge list` and `expunge show`: what there is, what it needs, where it comes from."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from typing import TYPE_CHECKING, Any

from expunge.cli import console
from expunge.cli.complete import catalogue
from expunge.core.errors import UsageError
from expunge.core.needs import Needs
from expunge.core.registry import Card
from expunge.core.user_code import split_preset

if TYPE_CHECKING:
    from expunge.core.options import OptionInfo


@dataclasses.dataclass(frozen=True)
class MethodFilter:
    """What a list of methods is narrowed to.

    request: meant for a "class", "samples" or "labels"; "" for all. without_retain: reads no retained sample.
    without_labels: reads no label of any split.
    """

    request: str = ""
    without_retain: bool = False
    without_labels: bool = False

    def takes(self, card: Card) -> bool:
        """Whether a card matches the filter."""
        needs = card.needs if isinstance(card.needs, Needs) else Needs()
        return (
            (not self.request or self.request in card.requests)
            and not (self.without_retain and needs.retain != "none")
            and not (self.without_labels and not needs.label_free)
        )


def list_kind(kind: str, as_json: bool, query: MethodFilter | None = None) -> None:
    """A table of all names of one kind; imports no implementation."""
    query = query or MethodFilter()
    methods = catalogue(kind).kind == "method"
    if query != MethodFilter() and not methods:
        raise UsageError(f"`--for` and `--without-...` narrow the list of methods; leave them out for {kind}.")
    cards = [card for card in catalogue(kind).cards() if query.takes(card)]
    if as_json:
        console.print_json([card_facts(card) for card in cards])
        return
    if methods:
        _list_methods(cards)
        return
    grid = console.table("name", "summary", "needs", "paper")
    grid.columns[0].no_wrap = True
    for card in cards:
        grid.add_row(card.name, card.summary, needs_phrase(card.needs), short_citation(card))
    console.out().print(grid)
    singular = kind.removesuffix("s")
    console.out().print(f"{len(cards)} {singular}s. Details: expunge show {singular} NAME", style="dim")


def _list_methods(cards: list[Card]) -> None:
    """One line per method, cut where the terminal ends."""
    grid = console.table("name", "reads", "published", "summary")
    rows = [(card.name, short_needs(card.needs), venue(card), card.summary) for card in cards]
    page = console.out()
    taken = sum(max((len(row[at]) for row in rows), default=0) for at in range(3))
    room = max(page.width - taken - 3 * 4, 16)  # the summary alone is cut; rich puts spaces around each column
    for *facts, text in rows:
        grid.add_row(*facts, text if len(text) <= room else f"{text[: room - 1].rstrip()}…")
    page.print(grid)
    page.print("reads: F forget, R retained, V held-out samples; y: with labels", style="dim")
    page.print(f"{len(cards)} methods. Details: expunge show method NAME", style="dim")


def print_matrix(kind: str, *, plain: bool) -> None:
    """docs/methods.md on standard output; plain: no other option was given."""
    if catalogue(kind).kind != "method" or not plain:
        raise UsageError("`--markdown` prints the whole table of methods; write `expunge list methods --markdown`.")
    from expunge.api.planning.matrix import matrix

    print(matrix(), end="")


def short_needs(needs: Any) -> str:
    """A few letters for one line.

    >>> short_needs(Needs(forget="inputs", retain="labels", initial=True))
    'F Ry init'
    """
    if not isinstance(needs, Needs):
        return "-"
    marks = {"inputs": "", "labels": "y"}
    splits = (("F", needs.forget), ("R", needs.retain), ("V", needs.validation))
    parts = [letter + marks[access] for letter, access in splits if access != "none"]
    parts += [name for name, on in (("recipe", needs.recipe), ("init", needs.initial)) if on]
    if needs.labelled:
        parts.append(f"y of {needs.labelled:.0%}" if needs.labelled < 1 else f"y of {needs.labelled:.0f}")
    return " ".join(parts) or "-"


def venue(card: Card) -> str:
    """Where and when: `NeurIPS 2023`, `arXiv 2024`."""
    if card.paper is None:
        return "-"
    match = re.search(r"[A-Za-z&]+ (19|20)\d\d", card.paper.cite.rpartition(",")[2])
    preprint = re.match(r"arXiv:(\d\d)", card.paper.url)
    return match.group() if match else f"arXiv 20{preprint.group(1)}" if preprint else card.paper.url


def card_facts(card: Card) -> dict[str, Any]:
    """The facts of a card, ready for JSON."""
    facts = dataclasses.asdict(card)
    facts.pop("target")
    if not isinstance(card.needs, Needs):
        facts.pop("requests")
    return facts


def needs_phrase(needs: Any) -> str:
    """Few words for a narrow column.

    >>> needs_phrase(Needs(forget="inputs", retain="labels", recipe=True))
    'forget (no labels), retain, recipe'
    """
    if not isinstance(needs, Needs):
        return str(needs or "-")
    phrases = {"none": None, "inputs": "{} (no labels)", "labels": "{}"}
    parts = [phrases[getattr(needs, name)] for name in ("forget", "retain", "validation")]
    named = [part.format(name) for part, name in zip(parts, ("forget", "retain", "validation"), strict=True) if part]
    extras = [phrase for phrase, needed in (("recipe", needs.recipe), ("initial weights", needs.initial)) if needed]
    return ", ".join([*named, *extras]) or "-"


def short_citation(card: Card) -> str:
    """First author, venue, address: `Kurmanji et al., NeurIPS 2023, arXiv:2302.09880`."""
    if card.paper is None:
        return "-"
    authors, _, title = card.paper.cite.partition(":")
    first, *coauthors = authors.replace(" et al.", ",").split(",")
    venue = (title or authors).rsplit(",", 1)[-1].strip()
    return f"{first}{' et al.' if coauthors else ''}, {venue}, {card.paper.url}"


def show(kind: str, name: str, as_json: bool) -> None:
    """Everything about one thing: its equation, options with bounds, presets, needs and citation."""
    registry = catalogue(kind)
    base, preset = split_preset(registry.named(name))
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
    if presets:
        page.print(f"presets are from: {thing.preset_source or 'their author'}")
    if registry.kind == "method":
        _print_measured(base)
    if card.paper is not None:
        page.print(f"\nPaper: {card.paper.cite}, {card.paper.url}")


def _print_measured(name: str) -> None:
    """What a method did on networks it was not made for, per kind of request; nothing where it was not measured."""
    from expunge.api.planning.ranks import measured

    for request, rank in measured().get(name, {}).items():
        console.out().print(f"measured, {request}: {rank.sentence(name)}")


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
    docstring = inspect.getdoc(thing) if isinstance(thing, type) or inspect.isfunction(thing) else ""
    module = getattr(sys.modules.get(getattr(thing, "__module__", "")), "__doc__", "") if kind == "method" else ""
    follows = _follows(thing) if kind == "method" else ""
    return "\n\n".join(part.strip() for part in (module, docstring, follows) if part)


def _follows(cls: Any) -> str:
    """Which options of a method are fitted to the problem where nobody gives them, and how."""
    from expunge.core.options import build
    from expunge.methods.base import Method
    from expunge.methods.scaling import Sizes
    from expunge.training.recipe import Recipe

    if cls.scaled is Method.scaled:
        return ""
    names = sorted(cls().scaled(Sizes(1, 1, build(Recipe, {}))))
    return f"Where they are not given, these follow the problem: {', '.join(names)}. {inspect.getdoc(cls.scaled)}"


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
