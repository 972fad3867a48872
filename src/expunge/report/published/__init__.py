"""Numbers that papers and their authors' code have printed, one YAML file per paper.

Every number has a tag that says where it was read. What could not be traced has no number: it is listed as missing and
stays empty wherever it is shown.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from importlib.resources import files
from typing import Literal

import pydantic
import yaml
from pydantic import ConfigDict, Field

from expunge.core.errors import unknown


class _Part(pydantic.BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PublishedValue(_Part):
    """One published cell, in its own unit. `metric` and `method` are names of Expunge unless `ours` is false."""

    method: str
    metric: str = Field(description="as in the metric column of a study's table")
    value: float | None = Field(None, description="as printed; none where only a range is known")
    spread: float | None = Field(None, ge=0, description="what it is, the table says")
    runs: tuple[float, ...] = Field((), description="the single runs, or the points of a curve")
    range: tuple[float, float] | None = Field(None, description="between which values the runs lie")
    unit: Literal["percent", "fraction", "ratio", "seconds", "count", "loss"]
    tag: str = Field(description="provenance, a key of the file's `tags`")
    ours: bool = Field(True, description="false: Expunge does not measure this")
    note: str = ""

    @pydantic.model_validator(mode="after")
    def _traced(self) -> PublishedValue:
        if self.value is None and self.range is None:
            raise ValueError("a number that could not be traced belongs to `missing`, not to `numbers`")
        return self

    def text(self) -> str:
        """As printed: `15.90 ± 0.29`, percent as percent, a share of 1 as percent, too."""
        scale = 100.0 if self.unit == "fraction" else 1.0
        values = [number for number in (self.value, self.spread, *(self.range or ())) if number is not None]
        digits = max(len(f"{round(scale * number, 6)!r}".partition(".")[2]) for number in values)
        if self.unit in ("percent", "fraction"):
            digits = max(digits, 2)
        if self.value is None:
            low, high = self.range or (0.0, 0.0)
            return f"{scale * low:.{digits}f} to {scale * high:.{digits}f}"
        text = f"{scale * self.value:.{digits}f}"
        return text if self.spread is None else f"{text} ± {scale * self.spread:.{digits}f}"


class Missing(_Part):
    """Cells that a table has and that could not be traced: every method by every metric, but those under `numbers`."""

    methods: tuple[str, ...]
    metrics: tuple[str, ...]


class PublishedTable(_Part):
    """Numbers of one setting, with what a reader must know to hold others beside them."""

    title: str
    source: str = Field(description="where in the paper or the code")
    dataset: str
    model: str
    scenario: str
    seeds: int | None = Field(None, ge=1, description="none: not known")
    spread: str = Field("", description="what the spreads are")
    note: str = ""
    numbers: tuple[PublishedValue, ...] = ()
    missing: Missing = Missing(methods=(), metrics=())

    def cell(self, method: str, metric: str) -> PublishedValue | None:
        """The number in a cell; None where it stays empty."""
        return next((n for n in self.numbers if n.ours and (n.method, n.metric) == (method, metric)), None)

    def metrics(self) -> list[str]:
        """Metrics of Expunge that the table prints, traced or not, in its order."""
        metrics = [n.metric for n in self.numbers if n.ours]
        return list(dict.fromkeys([*metrics, *self.missing.metrics]))

    def empty(self) -> Iterator[tuple[str, str]]:
        """(method, metric) of the cells that could not be traced."""
        for method in self.missing.methods:
            for metric in self.missing.metrics:
                if self.cell(method, metric) is None:
                    yield method, metric


class PublishedPaper(_Part):
    """One file."""

    paper: str
    cite: str
    url: str
    code: str
    tags: dict[str, str] = Field(description="tag -> what it means")
    tables: dict[str, PublishedTable]

    @pydantic.model_validator(mode="after")
    def _tagged(self) -> PublishedPaper:
        for name, table in self.tables.items():
            for number in table.numbers:
                if number.tag not in self.tags:
                    raise ValueError(f"table {name}: the tag `{number.tag}` is not explained under `tags`")
        return self


@functools.cache
def papers() -> dict[str, PublishedPaper]:
    """name -> paper, from the YAML files beside this module."""
    papers_by_name = {}
    for file in sorted(files(__name__).iterdir(), key=lambda entry: entry.name):
        if file.name.endswith(".yaml"):
            paper = PublishedPaper.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
            papers_by_name[paper.paper] = paper
    return papers_by_name


def names() -> list[str]:
    """All tables as `paper/table`."""
    return [f"{name}/{table}" for name, paper in papers().items() for table in paper.tables]


def find(name: str) -> tuple[PublishedPaper, PublishedTable]:
    """The table `paper/table`. `UsageError` for a name that does not exist."""
    if name not in names():
        raise unknown("published table", name, names())
    paper, _, table = name.partition("/")
    return papers()[paper], papers()[paper].tables[table]
