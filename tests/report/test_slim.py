"""Slimmer pictures draw the same: every element with its place, style, clip and transformation, in the same order."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from expunge.report.plots import PICTURE_STYLE
from expunge.report.slim import slim

Drawn = tuple[str, dict[str, str], dict[str, str], str]


def written(points: int) -> str:
    with matplotlib.rc_context(PICTURE_STYLE):
        figure = Figure(figsize=(4, 3))
        axes = figure.add_subplot()
        x, y = np.random.default_rng(0).random((2, points))
        axes.plot(x, y, "o", alpha=0.5, markeredgewidth=0, label="dots")
        axes.scatter(x, y + 1, c=x, marker="x")  # a style for each
        axes.scatter(x, y + 2, color="red", label="one > 0, 'two'")
        axes.errorbar([0.5], [1], xerr=[0.1])
        axes.stairs([1, 2, 1.5], fill=True)
        axes.set_yscale("log")  # digits and exponents are elements of their own
        figure.legend()
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg")
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def style(text: str) -> dict[str, str]:
    pairs = (part.split(":", 1) for part in text.split(";") if part.strip())
    found = {name.strip(): value.strip() for name, value in pairs}
    found.pop("font-family", None)  # the page's own instead
    return found


def numbers(text: str) -> str:
    """Two decimals, and blanks nowhere but between numbers."""
    text = re.sub(r"-?\d+\.\d+", lambda n: f"{float(n[0]):.2f}".rstrip("0").rstrip("."), text)
    return re.sub(r"\s*([A-Za-z])\s*", r"\1", " ".join(text.split()))


def drawn(element: ElementTree.Element, inherited: dict[str, str], way: str = "") -> Iterator[Drawn]:
    """Leaves in order: tag, own attributes, style with what the parents give it, transformations and clips above."""
    tag = element.tag.rpartition("}")[2]
    if tag in ("metadata", "clipPath"):
        return
    mine = {**inherited, **style(element.get("style", ""))}
    way += f"/{element.get('transform', '')}{element.get('clip-path', '')}" if tag == "g" else ""
    if len(element) == 0 and tag != "g":
        own = {name: numbers(value) for name, value in element.attrib.items() if name not in ("id", "style")}
        mine = {name: numbers(value) for name, value in mine.items()}
        yield tag, own, mine, numbers(re.sub("/+", "/", way)) + (element.text or "").strip()
    for child in element:
        yield from drawn(child, mine, way)


@pytest.mark.parametrize("points", [1, 2, 300])
def test_nothing_that_is_drawn_changes(points: int) -> None:
    before = written(points)
    after = slim(before)
    expected, found = (list(drawn(ElementTree.fromstring(text), {})) for text in (before, after))
    assert len(expected) > 3 * points + 20
    assert found == expected


def test_equal_points_carry_no_style_of_their_own() -> None:
    before = written(300)
    after = slim(before)
    assert len(after) < 0.7 * len(before)
    bare = re.findall(r'<use [^>]*y="[^"]*"/>', after)
    assert len(bare) >= 600
    assert "DejaVu" not in after
