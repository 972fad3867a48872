"""A folder of linked pages about many studies: leaderboard, one card per method, and a page per scenario to dig in.

Plain files: they open from a disk, need no server and no network, and each page holds its own data.

    index.html                  every method of every study, averaged over seeds; filters and sorting
    methods/<method>.html       what a method does and needs, whom to cite, and its results everywhere
    scenarios/<study>-<n>.html  two models beside each other: classes, predictions, an attack by threshold
    studies/<study>.html        the report page of the study
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup

from expunge.api.record import CellRecord
from expunge.api.result import write_text
from expunge.core.errors import UsageError
from expunge.core.needs import Needs
from expunge.core.registry import Card
from expunge.core.version import __version__
from expunge.methods import METHODS
from expunge.report.drill import drill
from expunge.report.environment import environment, stylesheet
from expunge.report.page import build_page, facts, table_row
from expunge.report.summarise import COLUMNS, REFERENCE, ScenarioBlock, blocks


@dataclass(frozen=True)
class SiteStudy:
    """One study, or what one `unlearn` gave. name: short; it names the files. published: as `report.build` takes it."""

    name: str
    cells: Sequence[CellRecord]
    title: str = ""
    about: str = ""
    published: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class _StudyReport:
    """A scenario of a study, with the places of its pages."""

    study: SiteStudy
    block: ScenarioBlock
    page: str
    report: str
    rows: list[dict[str, Any]] = field(default_factory=list)


def build_site(studies: Sequence[SiteStudy], out: Path) -> Path:
    """Write all pages below `out` and return the path of the first one. `UsageError` if there is nothing to show."""
    if not any(study.cells for study in studies):
        raise UsageError("there is nothing to report: no cell was given.")
    entries = list(_entries([study for study in studies if study.cells]))
    render = _Renderer()
    methods = _methods(entries)
    for study in dict.fromkeys(entry.report for entry in entries):
        record = next(entry.study for entry in entries if entry.report == study)
        build_page(
            record.cells,
            out / study,
            title=record.title or record.name,
            about=record.about,
            published=record.published,
            home="../",
        )
    for entry in entries:
        data = drill(entry.block)
        render(out / entry.page, "scenario", root="../", title=entry.block.label, entry=entry, data=_json(data),
               facts=facts(entry.block), style=("site",), script=("scenario",))  # fmt: skip
    for name, place in methods.items():
        rows = [row for entry in entries for row in entry.rows if row["method"] == name]
        render(out / place, "method", root="../", title=name, card=card(name, entries), rows=rows,
               columns=_columns(rows), style=("site",), script=("report",))  # fmt: skip
    rows = [row for entry in entries for row in entry.rows]
    reports = {entry.report: entry.study for entry in entries}
    render(out / "index.html", "index", root="", title="Leaderboard", rows=rows, columns=_columns(rows),
           filters=_filters(rows), studies=reports, methods=methods, style=("site",),
           script=("report", "index"))  # fmt: skip
    return out / "index.html"


def _entries(studies: Sequence[SiteStudy]) -> Iterator[_StudyReport]:
    taken: set[str] = set()
    for study in studies:
        stem = slug(study.name, taken)
        for number, block in enumerate(blocks(study.cells), 1):
            entry = _StudyReport(study, block, f"scenarios/{stem}-{number}.html", f"studies/{stem}.html")
            entry.rows.extend(_rows(entry))
            yield entry


def _rows(entry: _StudyReport) -> Iterator[dict[str, Any]]:
    """Rows of the leaderboard: numbers by metric, and everything that is filtered by."""
    block = entry.block
    reference = block.row(REFERENCE)
    data = next((cell.data for row in block.rows for cell in row.cells), {})
    for row in block.rows:
        cells = table_row(row, block, reference)
        yield {
            **{key: cells[key] for key in ("label", "kind", "badges", "verdict", "count", "status")},
            "failed": len(cells["failed"]),
            "method": row.name,
            "scenario": block.label,
            "data": str(data.get("name", "not known")),
            "study": entry.study.name,
            "title": entry.study.title or entry.study.name,
            "page": entry.page,
            "report": entry.report,
            "numbers": dict(zip((c.metric for c in block.columns), cells["cells"], strict=True)),
        }


def _columns(rows: Sequence[dict[str, Any]]) -> list[Any]:
    filled = {metric for row in rows for metric, cell in row["numbers"].items() if cell["sort"]}
    columns = [column for column in COLUMNS if column.metric in filled]
    return sorted(columns, key=lambda column: column.metric != "average_gap")  # what all scenarios have in common first


def _filters(rows: Sequence[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    return [(key, sorted({row[key] for row in rows})) for key in ("data", "study", "scenario", "method")]


def _methods(entries: Sequence[_StudyReport]) -> dict[str, str]:
    taken: set[str] = set()
    names = dict.fromkeys(row["method"] for entry in entries for row in entry.rows)
    return {name: f"methods/{slug(name, taken)}.html" for name in names}


def card(name: str, entries: Sequence[_StudyReport]) -> dict[str, Any]:
    """What the catalogue says of a method; of one that is not installed, what its cells say."""
    method_card: Card | None = METHODS.card(name) if name in METHODS.names() else None
    ran = [cell for e in entries for row in e.block.rows if row.name == name for cell in row.cells]
    if method_card is None:
        cite = str(ran[0].method.get("cite", "")) if ran else ""
        needs = Needs(**ran[0].needs).describe() if ran else {}
        return {"name": name, "summary": "", "about": "", "needs": needs, "cite": cite, "url": "", "tags": []}
    thing = METHODS.load(name)
    module = getattr(sys.modules.get(thing.__module__), "__doc__", "") or ""
    docstring = inspect.getdoc(thing) or ""
    return {
        "name": name,
        "summary": method_card.summary,
        "about": "\n\n".join(part.strip() for part in (module, docstring) if part),
        "needs": method_card.needs.describe() if isinstance(method_card.needs, Needs) else {},
        "cite": method_card.paper.cite if method_card.paper else "",
        "url": _address(method_card.paper.url) if method_card.paper else "",
        "tags": list(method_card.tags),
    }


def _address(url: str) -> str:
    return f"https://arxiv.org/abs/{url.partition(':')[2]}" if url.startswith("arXiv:") else url


def slug(text: str, taken: set[str]) -> str:
    """A file name: lower-case letters, digits and hyphens; distinct for what is in `taken`, which it joins.

    >>> slug("NegGrad+", set()), slug("a b", {"a-b"})
    ('neggrad-plus', 'a-b-2')
    """
    stem = re.sub(r"[^a-z0-9]+", "-", text.lower().replace("+", "-plus-")).strip("-") or "x"
    candidate, number = stem, 2
    while candidate in taken:
        candidate, number = f"{stem}-{number}", number + 1
    taken.add(candidate)
    return candidate


def _json(value: Any) -> Markup:
    """JSON that may stand in a script element."""
    return Markup(json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"))


class _Renderer:
    """Templates of this package, with style and scripts written into every page."""

    def __init__(self) -> None:
        self._folder = files("expunge.report").joinpath("templates")
        self._environment = environment()

    def __call__(
        self, path: Path, template: str, *, style: Sequence[str], script: Sequence[str], **values: Any
    ) -> None:
        sheets = "\n".join(stylesheet(name) for name in ("report", *style))
        scripts = "\n".join(self._read(f"{name}.js") for name in script)
        html = self._environment.get_template(f"{template}.html").render(
            **values, sheets=Markup(sheets), scripts=Markup(scripts), version=__version__
        )
        write_text(path, html)

    def _read(self, name: str) -> str:
        return self._folder.joinpath(name).read_text(encoding="utf-8")
