"""A case as a PDF, to be filed or sent: the same words as the page, on A4, the same bytes for the same case."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import matplotlib
import pandas as pd

from expunge.core.files import write_bytes
from expunge.core.version import __version__
from expunge.report.audit_page import attack_figure
from expunge.report.plots import PICTURE_STYLE
from expunge.requests.case.story import FORGOTTEN, PICTURE, Section, Story, Table, tell
from expunge.requests.extras import extra

with extra("requests"):
    from fpdf import FPDF, XPos, YPos
    from fpdf.enums import TableBordersLayout
    from fpdf.fonts import FontFace, TTFFont

_FONT = "DejaVu"  # free, and on every machine that has matplotlib: Latin, Greek, Cyrillic, some Hebrew and Arabic
_FACES = {"": "DejaVuSans.ttf", "B": "DejaVuSans-Bold.ttf"}
_MISSING = "\u25a1"  # stands where the font has no glyph; the case file has the text itself
_INK, _SOFT, _LINE, _TINT = (28, 32, 38), (90, 99, 112), (216, 221, 227), (243, 246, 249)
_TONES = {"good": (10, 107, 61), "bad": (163, 48, 0), "open": (90, 99, 112)}
_DPI = 200  # of the picture
_WIDEST = 64.0  # mm of a column before the table is stretched over the page


class _Sheet(FPDF):
    """Pages with a number at their foot. title: repeated there."""

    def __init__(self, story: Story) -> None:
        super().__init__(format="A4")
        self.story = story
        folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
        for style, name in _FACES.items():
            self.add_font(_FONT, style, folder / name)
        self.known = set(cast(TTFFont, self.fonts[_FONT.lower()]).cmap)  # code points that the font can draw
        self.set_creation_date(story.made_at)
        self.set_title(story.title)
        self.set_producer(f"Expunge {__version__}")
        self.set_lang("en")
        self.set_margins(18, 16, 18)
        self.set_auto_page_break(True, margin=18)

    def footer(self) -> None:
        self.set_y(-13)
        self.ink(_SOFT, 8)
        self.cell(0, 5, f"{self.story.title} · page {self.page_no()} of {{nb}}", align="C")

    def ink(self, colour: tuple[int, int, int] = _INK, size: float = 9.5, style: str = "") -> None:
        self.set_text_color(*colour)
        self.set_font(_FONT, style, size)

    def shown(self, text: str) -> str:
        return "".join(one if one == "\n" or ord(one) in self.known else _MISSING for one in text)

    def say(self, text: str, *, height: float = 5.0) -> None:
        self.multi_cell(0, height, self.shown(text), align="L", new_x=XPos.LMARGIN, new_y=YPos.NEXT)


def case_pdf(document: Mapping[str, Any], purges: Sequence[Mapping[str, Any]] = ()) -> bytes:
    """The PDF of a signed document, with records of purges since.

    Raises:
        UsageError: If the document is not complete.
    """
    story = tell(document, purges)
    sheet = _Sheet(story)
    sheet.add_page()
    _head(sheet, story)
    attacks = pd.DataFrame(document["content"]["audit"].get("attacks", ()))
    for section in story.sections:
        _section(sheet, section)
        if section.title == FORGOTTEN and not attacks.empty:
            _picture(sheet, attacks)
    return bytes(sheet.output())


def build_case_pdf(document: Mapping[str, Any], out: str | Path, purges: Sequence[Mapping[str, Any]] = ()) -> Path:
    """Write the PDF; it appears whole or not at all. Raises `ExpungeError` if it cannot be written."""
    write_bytes(Path(out), case_pdf(document, purges))
    return Path(out)


def _head(sheet: _Sheet, story: Story) -> None:
    sheet.ink(_SOFT, 9, "B")
    sheet.say("Expunge")
    sheet.ink(size=20, style="B")
    sheet.say(story.title, height=10)
    sheet.ln(1)
    colour = _TONES[story.tone]
    sheet.ink(colour, 14, "B")
    sheet.set_draw_color(*colour)
    sheet.set_line_width(0.6)
    sheet.cell(
        sheet.get_string_width(story.label) + 10,
        10,
        story.label,
        border=1,
        align="C",
        new_x=XPos.LMARGIN,
        new_y=YPos.NEXT,
    )
    sheet.ln(2)
    sheet.ink(size=11)
    sheet.say(story.meaning, height=5.6)
    sheet.ink(_SOFT)
    sheet.say(story.basis)
    sheet.ln(2)
    _facts(sheet, story.facts)


def _section(sheet: _Sheet, section: Section) -> None:
    if sheet.will_page_break(30 + 6 * min(len(section.facts), 8)):  # a heading never stands alone at a page's foot
        sheet.add_page()
    sheet.ln(4)
    sheet.set_draw_color(*_LINE)
    sheet.set_line_width(0.4)
    sheet.line(sheet.l_margin, sheet.get_y(), sheet.w - sheet.r_margin, sheet.get_y())
    sheet.ln(2)
    sheet.ink(size=13, style="B")
    sheet.start_section(section.title)
    sheet.say(section.title, height=7)
    sheet.ink()
    for text in section.paragraphs:
        sheet.say(text)
        sheet.ln(1)
    for text in section.points:
        sheet.say(f"•  {text}")
        sheet.ln(0.6)
    if section.facts:
        sheet.ln(1)
        _facts(sheet, section.facts)
    if section.table is not None:
        sheet.ln(1)
        _table(sheet, section.table)


def _picture(sheet: _Sheet, attacks: pd.DataFrame) -> None:
    """The attacks as one picture, on a page of its own if it does not fit on this one."""
    with matplotlib.rc_context({**PICTURE_STYLE, "font.family": "DejaVu Sans"}):
        figure = attack_figure(attacks)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=_DPI, facecolor="white", metadata={"Software": None})
    width, (across, up) = sheet.epw, figure.get_size_inches()
    height = width * up / across
    if sheet.will_page_break(height + 14):
        sheet.add_page()
    sheet.ln(3)
    sheet.ink(_SOFT, 8.5)
    sheet.say(PICTURE, height=4.6)
    sheet.image(buffer, w=width, h=height, alt_text="AUC of every attack with its interval")


def _facts(sheet: _Sheet, facts: Sequence[tuple[str, str]]) -> None:
    sheet.ink(size=8.5)  # so that a hash fits into one line
    sheet.set_draw_color(*_LINE)
    sheet.set_line_width(0.2)
    with sheet.table(
        col_widths=(27, 73), first_row_as_headings=False, borders_layout=TableBordersLayout.HORIZONTAL_LINES,
        line_height=4.6, padding=(0.8, 1), v_align="TOP", text_align=("LEFT", "LEFT"), cell_fill_color=_TINT,
        cell_fill_mode="ALL",
    ) as table:  # fmt: skip
        for name, text in facts:
            row = table.row()
            row.cell(sheet.shown(name), style=FontFace(emphasis="BOLD"))
            row.cell(sheet.shown(text))


def _table(sheet: _Sheet, table: Table) -> None:
    sheet.ink(size=8)
    sheet.set_draw_color(*_LINE)
    sheet.set_line_width(0.2)
    widths = [_width(sheet, table, column) for column in range(len(table.columns))]
    with sheet.table(
        col_widths=widths, borders_layout=TableBordersLayout.HORIZONTAL_LINES, line_height=4.2, padding=(0.8, 1),
        v_align="TOP",
        text_align=["RIGHT" if number else "LEFT" for _, number in table.columns],
        headings_style=FontFace(emphasis="BOLD", fill_color=_TINT), repeat_headings=1,
    ) as drawn:  # fmt: skip
        heading = drawn.row()
        for name, _ in table.columns:
            heading.cell(sheet.shown(name))
        for row in table.rows:
            line = drawn.row()
            for cell in row:
                line.cell(sheet.shown(cell if isinstance(cell, str) else f"{cell[0]}\n{cell[1]}"))


def _width(sheet: _Sheet, table: Table, column: int) -> float:
    """mm of the longest line, or word of the heading; bounded, so that one long reason leaves room to the others."""
    sheet.set_font(_FONT, "B")
    words = [sheet.get_string_width(word) for word in table.columns[column][0].split()]
    sheet.set_font(_FONT, "")
    cells = [cell if isinstance(cell, str) else cell[1] for cell in (row[column] for row in table.rows)]
    return min(_WIDEST, max([*words, *(sheet.get_string_width(sheet.shown(text)) for text in cells)]) + 4)
