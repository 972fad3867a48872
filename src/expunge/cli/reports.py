"""From run and study folders to one report page and tables on the terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pydantic

from expunge.api.record import CellRecord
from expunge.core.errors import DataError, UsageError

if TYPE_CHECKING:
    from expunge.bench.recipe import Study


def read_cells(run: Path) -> list[CellRecord]:
    """The records of a folder that `expunge unlearn` wrote, of a cells.json file, or of a study folder."""
    if run.is_dir() and not (run / "cells.json").exists():
        from expunge.bench.run import cells

        if (run / "settings.json").exists():
            raise UsageError(f"{run} holds no measured result; name a folder of a finished `unlearn` or of `run`.")
        return list(cells(run))
    path = run / "cells.json" if run.is_dir() else run
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
        return [CellRecord.model_validate(item) for item in loaded]
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); name a folder of `unlearn` or `run`.") from None
    except (ValueError, TypeError, pydantic.ValidationError) as error:
        raise DataError(f"{path} holds no records of Expunge ({str(error).splitlines()[0]}).") from None


def read_study(run: Path) -> Study | None:
    """The recipe of a study folder; None for what `expunge unlearn` wrote, and for recipes of another version."""
    if not run.is_dir() or (run / "cells.json").exists():
        return None
    from expunge.bench.run import study

    return study(run)


def check_published(study: Study) -> None:
    """`UsageError` now, not when the report is written, for published tables that do not exist."""
    from expunge.report import published

    for table, _ in study.references():
        published.find(table)


def write_report(runs: Sequence[Path], out: Path) -> None:
    """One self-contained page about all records of the given folders, headed by the study's own words if it is one."""
    from expunge import report

    studies = [_described(run) for run in runs]
    cells = [cell for study in studies for cell in study.cells]
    heading = {"title": studies[0].title, "about": studies[0].about} if len(studies) == 1 and studies[0].title else {}
    report.build(cells, out, published=[reference for study in studies for reference in study.published], **heading)


def write_site(runs: Sequence[Path], out: Path) -> Path:
    """A folder of pages about the studies of the given folders; returns the first page."""
    from expunge.report.site import SiteStudy, build_site

    return build_site([SiteStudy(*_described(run)) for run in runs], out)


class _Run(NamedTuple):
    """The records of a run and what its recipe says about them."""

    name: str
    cells: list[CellRecord]
    title: str = ""
    about: str = ""
    published: Sequence[tuple[str, str]] = ()


def _described(run: Path) -> _Run:
    cells, study = read_cells(run), read_study(run)
    name = (run if run.is_dir() else run.parent).resolve().name
    if study is None:
        return _Run(name, cells)
    labels = dict.fromkeys(str(cell.scenario.get("label", "")) for cell in cells)
    compared = [(table, label) for table, only in study.references() for label in ([only] if only else labels)]
    return _Run(name, cells, study.title or study.name, study.about, compared)
