"""The templates of pages, wherever they lie, with the macros and the style that all share."""

from __future__ import annotations

from importlib.resources import files

import jinja2
from markupsafe import Markup

_HOME = "expunge.report"


def environment(*packages: str) -> jinja2.Environment:
    """Templates of `packages` (their folder `templates`), then those of this room; text is escaped, gaps are errors."""
    return jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined,
        loader=jinja2.ChoiceLoader([_loader(name) for name in (*packages, _HOME)]),
    )  # fmt: skip


def stylesheet(name: str = "report") -> Markup:
    """The text of a style sheet, to be written into a page."""
    return Markup(files(_HOME).joinpath("templates", f"{name}.css").read_text(encoding="utf-8"))


def _loader(package: str) -> jinja2.BaseLoader:
    folder = files(package).joinpath("templates")

    def read(name: str) -> str | None:
        template = folder.joinpath(name)
        return template.read_text(encoding="utf-8") if template.is_file() else None

    return jinja2.FunctionLoader(read)
