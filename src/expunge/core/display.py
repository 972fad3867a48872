"""Short representations of objects: a title and at most nine `name: value` lines, as text or as an HTML table."""

from __future__ import annotations

import html
from collections.abc import Sequence

Lines = Sequence[tuple[str, str]]


def as_text(title: str, rows: Lines) -> str:
    """The title, followed by one indented line per row, with names padded to equal width."""
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in rows)])


def as_html(title: str, rows: Lines) -> str:
    """The title and rows as a small HTML table, for notebooks."""
    body = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in rows)
    return f"<table><caption>{html.escape(title)}</caption>{body}</table>"


def counted(number: int, noun: str) -> str:
    """`1 sample`, `2 samples`, `1,000 samples`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
