"""One self-contained page about any number of finished cells."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from expunge.api.record import CellRecord


def build(
    cells: Sequence[CellRecord],
    out: Path,
    *,
    title: str = "What was forgotten",
    about: str = "",
    published: Sequence[tuple[str, str]] = (),
) -> Path:
    """Write the page to `out` (whole or not at all) and return its path. Needs nothing but the records.

    about: how the study differs from what it repeats. published: (`paper/table`, label of the scenario, or "" for all)
    of the published numbers to show beside ours, see `expunge.report.published`.
    """
    from expunge.report.page import build_page

    return build_page(cells, Path(out), title=title, about=about, published=published)
