"""The page: its numbers, its words, what it escapes, what it never leaves out."""

from __future__ import annotations

import html.parser
import re
import statistics
from pathlib import Path
from typing import Any

import pytest

from expunge import report
from expunge.api.record import CellRecord
from expunge.core.errors import UsageError
from expunge.core.needs import Needs
from expunge.methods import METHODS
from expunge.report.page import table_row
from expunge.report.plots import style_of
from expunge.report.summarise import MethodRow, blocks
from expunge.report.verdicts import headline, over_seeds_word, verdict

FORGET = {"original": (1.0, 1.0), "retrain": (0.10, 0.14), "scrub": (0.12, 0.16), "finetune": (0.9, 0.8)}


def cell(method: str, seed: int, forget: float, **more: Any) -> CellRecord:
    needs: Needs = METHODS.card(method).needs if method in METHODS.names() else Needs()
    scores = [
        {"metric": m, "group": g, "value": v, "low": None, "high": None, "unit": "fraction", "direction": "higher"}
        for m, g, v in (("forget_accuracy", "", forget), ("test_accuracy", "", 0.9), ("class_accuracy", "a", 0.8))
    ]
    given: dict[str, Any] = {
        "id": f"{method}{seed}",
        "scenario": {"label": "class: <script>alert(1)</script>", "forget": 100, "options": {"target": 3}},
        "data": {"name": "toy", "classes": 2, "train": 100, "test": 50, "class_names": ["a", "b"]},
        "model": {"name": "net", "parameters": 1234},
        "method": {"label": method, "name": method, "options": {}, "tags": [], "cite": ""},
        "seeds": {"data": seed, "train": seed, "unlearn": seed, "evaluate": seed},
        "seconds": 1.0,
        "needs": {name: getattr(needs, name) for name in needs.__dataclass_fields__},
        "history": [{"epoch": 1.0, "loss": 0.5, "seconds": 0.1}, {"epoch": 2.0, "loss": 0.2, "seconds": 0.1}],
        "scores": scores,
        "curves": {
            "losses": {"forget": [0.1, 1.0], "test": [0.1, 0.2]},
            "confusion": {"forget": [[5, 5], [0, 0]], "test": [[20, 5], [5, 20]]},
        },
    }
    return CellRecord(**{**given, **more})


@pytest.fixture
def cells() -> list[CellRecord]:
    done = [cell(name, seed, values[seed]) for name, values in FORGET.items() for seed in (0, 1)]
    return [*done, cell("neggrad", 0, 0.0, state="failed", error="neggrad diverged in epoch 2", scores=[], curves={})]


def test_statistics_are_mean_and_sample_deviation(cells: list[CellRecord]) -> None:
    (block,) = blocks(cells)
    assert [row.label for row in block.rows[:2]] == ["original", "retrain"]
    for row in block.rows:
        if row.cells:
            number = row.numbers["forget_accuracy"]
            assert number.mean == pytest.approx(statistics.mean(FORGET[row.name]))
            assert number.spread == pytest.approx(statistics.stdev(FORGET[row.name]))


def test_verdicts_follow_their_rules(cells: list[CellRecord]) -> None:
    (block,) = blocks(cells)
    words = {row.label: verdict(row, block.row("retrain")) for row in block.rows}
    assert words == {
        "original": "",
        "retrain": "",
        "scrub": "close",
        "finetune": "still remembers",
        "neggrad": "failed",
    }
    assert headline(block) == (
        "scrub comes closest to training again without the data. "
        "finetune still knows part of what should be gone. neggrad failed."
    )


class _Page(html.parser.HTMLParser):
    void = frozenset({"meta", "br", "link", "use", "path", "rect", "image", "stop", "img", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """`<path/>` opens nothing."""

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.void:
            assert self.open.pop() == tag


def test_page_is_whole_escaped_and_offline(cells: list[CellRecord], tmp_path: Path) -> None:
    text = report.build(cells, tmp_path / "r.html", title="A <b>title</b>").read_text(encoding="utf-8")
    parser = _Page()
    parser.feed(text)
    assert parser.open == []
    assert "<script>alert" not in text
    assert "<b>title" not in text
    assert "neggrad, 1 of 1 cells without a result: neggrad diverged in epoch 2" in text
    assert "what perfect forgetting" in text
    assert "14.0 ± 2.8" in text  # scrub: mean and deviation of 0.12 and 0.16 in percent
    assert not re.findall(r'(?:src|href)="(?!#|data:image)[^"]*"', text.replace('xlink:href="#', 'href="#'))
    assert "@import" not in text


def test_the_original_has_no_speed(cells: list[CellRecord]) -> None:
    def rows(factor: float) -> list[dict[str, Any]]:
        return [*cells[0].scores, {**cells[0].scores[0], "metric": "scale_up", "value": factor}]

    timed = [one.model_copy(update={"scores": rows(7.5)}) for one in cells if one.method["name"] != "neggrad"]
    (block,) = blocks(timed)
    shown = {row.label: table_row(row, block, None)["cells"][-1]["text"] for row in block.rows}
    assert shown == {"original": "–", "retrain": "7.5 ± 0.0", "scrub": "7.5 ± 0.0", "finetune": "7.5 ± 0.0"}


def test_many_methods_are_told_apart(cells: list[CellRecord]) -> None:
    rows = [MethodRow(f"m{i}", f"m{i}", [cells[0]], []) for i in range(40)]
    assert len(set(style_of(rows).values())) == 40


def test_equal_records_give_equal_bytes(cells: list[CellRecord], tmp_path: Path) -> None:
    first = report.build(cells, tmp_path / "a.html").read_bytes()
    assert first == report.build(cells, tmp_path / "b.html").read_bytes()


def test_nothing_to_report_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to report"):
        report.build([], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_streams_layers_and_patterns_are_drawn_where_they_were_measured(tmp_path: Path) -> None:
    plain = [cell(method, 0, 0.5) for method in ("original", "retrain", "scrub")]
    page = report.build(plain, tmp_path / "plain.html").read_text(encoding="utf-8")
    assert not any(title in page for title in ("Request after request", "Which layers changed?", "became of which"))

    def more(one: CellRecord) -> CellRecord:
        row = {"low": None, "high": None, "unit": "fraction", "direction": "higher"}
        rows = [
            {"metric": f"request_{kind}_accuracy", "group": str(n), "value": n / 4, **row}
            for kind in ("current", "past")
            for n in (1, 2, 3)
        ]
        rows += [{"metric": "forget_layer_cka", "group": name, "value": 0.9, **row} for name in ("body.0", "head")]
        confusion = {"forget": [[1, 4], [5, 0]], "test": [[20, 5], [5, 20]]}
        return one.model_copy(update={"scores": one.scores + rows, "curves": {**one.curves, "confusion": confusion}})

    page = report.build([more(one) for one in plain], tmp_path / "more.html").read_text(encoding="utf-8")
    for title in ("Request after request", "Which layers changed?", "What became of which class?"):
        assert title in page


def test_words_are_tested_over_seeds() -> None:
    wiggle = (0.004, -0.003, 0.001, -0.002)
    values = {"original": 1.0, "retrain": 0.12, "scrub": 0.13, "finetune": 0.9, "neggrad": 0.0}
    many = [cell(name, seed, value + w) for name, value in values.items() for seed, w in enumerate(wiggle)]
    (block,) = blocks(many)
    words = {row.name: over_seeds_word(row, block)[0] for row in block.rows}
    assert words == {
        "original": "", "retrain": "", "scrub": "forgotten", "finetune": "not forgotten", "neggrad": "over-forgotten",
    }  # fmt: skip
    (block,) = blocks([one for one in many if one.seeds["data"] < 2])
    assert {over_seeds_word(row, block)[0] for row in block.rows} == {""}  # two seeds are too few
    (block,) = blocks([one for one in many if one.method["name"] != "retrain"])
    assert {over_seeds_word(row, block)[0] for row in block.rows} == {""}


def test_attack_and_likeness_columns_are_there_where_they_were_measured(cells: list[CellRecord]) -> None:
    (block,) = blocks(cells)
    assert not {"asr", "asr_balanced", "test_cka"} & {c.metric for c in block.columns}

    def more(one: CellRecord) -> CellRecord:
        seed = one.seeds["data"]
        given = {"asr": (0.7, None, None), "asr_neutral": (0.75, None, None), "test_cka": (0.987, None, None),
                 "asr_balanced": (0.52 + seed / 50, 0.5, 0.56), "asr_auc": (0.55, 0.5, 0.6)}  # fmt: skip
        rows = [
            {**one.scores[0], "metric": name, "value": value, "low": low, "high": high}
            for name, (value, low, high) in given.items()
        ]
        return one.model_copy(update={"scores": [*one.scores, *rows]})

    def shown(found: list[CellRecord]) -> list[str]:
        (block,) = blocks(found)
        return [cell["text"] for cell in table_row(block.rows[0], block, None)["cells"]][-5:]

    seeds = [more(one) for one in cells if one.method["name"] == "scrub"]
    assert shown(seeds) == [
        "70.0 ± 0.0", "75.0 ± 0.0", "53.0 ± 1.4 [50.0, 56.0]", "0.55 ± 0.00 [0.50, 0.60]", "0.987 ± 0.000"
    ]  # fmt: skip
    assert shown(seeds[:1]) == ["70.0", "75.0", "52.0 [50.0, 56.0]", "0.55 [0.50, 0.60]", "0.987"]


def test_seconds_per_stage_are_means_over_seeds(cells: list[CellRecord], tmp_path: Path) -> None:
    plain = report.build(cells, tmp_path / "plain.html").read_text(encoding="utf-8")
    assert "Seconds per stage" not in plain
    timed = [
        one.model_copy(update={"stages": {"<vae>": 1.0 + one.seeds["data"], "extractor": 4.0}})
        if one.method["name"] == "scrub"
        else one
        for one in cells
    ]
    text = report.build(timed, tmp_path / "timed.html").read_text(encoding="utf-8")
    parser = _Page()
    parser.feed(text)
    table = text.partition("<summary>Seconds per stage</summary>")[2].partition("</table>")[0]
    assert re.findall(r"<td[^>]*>([^<]*)</td>", table) == ["1.50", "4.00"]
    assert "&lt;vae&gt;" in table
    assert "finetune" not in table
