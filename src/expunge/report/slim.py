"""The same picture in fewer bytes: what Matplotlib repeats in every element of an SVG is said once.

A page holds thousands of points and ticks, and Matplotlib writes the style, the clip and the fonts of each in full.
Nothing is left out that is drawn, and no element changes its place among the others.
"""

from __future__ import annotations

import re

_POINT = r'<use ([^>]*?) style="([^"]*)"/>'
_GROUP = re.compile(rf"<g( [^>]*)?>\s*((?:{_POINT}\s*)+)</g>")
_NEIGHBOURS = re.compile(r'(<g clip-path="[^"]+">)\s*(<use [^>]*/>)\s*</g>(?:\s*\1\s*<use [^>]*/>\s*</g>)+')


def slim(text: str) -> str:
    """An SVG element that Matplotlib wrote: coordinates with two decimals, the page's font, no style said twice."""
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r"font: ([^;\"]*?)'[^'\"]*'[^;\"]*", r"font: \1 system-ui, sans-serif", text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text).replace(
        "<svg ", '<svg font-family="system-ui, sans-serif" ', 1
    )
    # A hundredth of a point is nothing to see.
    text = re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), text)
    text = re.sub(r' d="[^"]*"', lambda path: re.sub(r"\s*([MLCQVHz])\s*", r"\1", path[0]), text)
    text = re.sub(r">\s+<", ">\n<", text)
    text = _NEIGHBOURS.sub(lambda match: match[1] + "".join(re.findall(r"<use [^>]*/>\s*", match[0])) + "</g>", text)
    return _GROUP.sub(_styled_once, text)


def _styled_once(match: re.Match[str]) -> str:
    """A group of points of one style carries it; otherwise the group stays as it is."""
    points = re.findall(_POINT, match[2])
    if len(points) < 2 or len({style for _, style in points}) > 1 or "style=" in (match[1] or ""):
        return match[0]
    uses = "\n".join(f"<use {where}/>" for where, _ in points)
    return f'<g{match[1] or ""} style="{points[0][1]}">\n{uses}\n</g>'
