"""The page and the PDF of a case: they say what a data-protection officer asks, and nothing breaks them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from expunge.core.errors import ExpungeError, UsageError
from expunge.requests.case import pdf as pdf_module
from expunge.requests.case.content import Remaining
from expunge.requests.case.document import Finding, case_bytes, verify_case
from expunge.requests.case.keys import Signer, create_keys
from expunge.requests.case.page import build_case_page, case_html
from expunge.requests.case.pdf import build_case_pdf, case_pdf
from expunge.requests.case.story import Section, Story, tell
from expunge.requests.case.words import visible
from tests.report.test_site import CHROMIUM, in_browser
from tests.requests.cases import AT, AUDIT, PLAN, SIDE_EFFECTS, UNLEARNING, document, hashed, request, version

NASTY = "Löschung <script>alert(1)</script> 削除 العربية 🙂 \u202edetpmet\n\tdone \x00"


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Signer:
    return create_keys(tmp_path_factory.mktemp("workspace") / "keys")


def words(document: dict[str, Any], **more: Any) -> str:
    page = re.sub(r"<(svg|style).*?</\1>", "", case_html(document, **more), flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page)).replace("\N{NO-BREAK SPACE}", " ")


def test_everything_an_officer_asks_is_said(signer: Signer) -> None:
    made = document(signer)
    text = words(made)
    for part in (
        "Deletion case 1", "not enough evidence", "2 requests to delete what the model knows of 2 training samples",
        "received on 26 February 2026", "GDPR Art. 17", "T-1", "1 March 2026, 12:32 UTC",
        f"Model {hashed('old')[:12]} was made to forget", f"model {hashed('new')[:12]}, which takes its place",
        "epochs = 3, alpha = 0.001", "It took 12.5 s; it ran to its end", "labels and retained data are at hand",
        "Samples to forget inputs and labels", "Held-out samples nothing",
        "share of the samples to forget that the model still classifies correctly 100.0 % 98.0 % 95.0 to",
        "0.610 0.498 0.468 to 0.528", "clearly less accurate than before (at 95 %, for each class alone): 1.",
        "-3.0 (-4.0 to -2.0)", "1 older version of the model still knows the samples", "to be deleted by 31 March 2026",
        "not a proof that nothing of them is left", "none: this is the first", made["hash"], made["fingerprint"],
    ):  # fmt: skip
        assert part in text, part
    assert "-0.0" not in text
    assert hashed("subject 1") not in text  # short hashes are enough for people


def test_the_page_is_self_contained_and_short_of_nothing(signer: Signer, tmp_path: Path) -> None:
    made = document(signer)
    findings = verify_case(case_bytes(made), signer.public)
    page = build_case_page(made, tmp_path / "a.html", [*findings, Finding("weights", False, "the model is another.")])
    text = page.read_text()
    assert "In order: the hash of the content is the stated one." in text
    assert "NOT in order: the model is another." in text
    assert text.count("<svg") == 1
    assert "<script" not in text
    assert "http" not in re.sub(r"http://www.w3.org\S*|http://purl\S*|http://creativecommons\S*", "", text)
    assert build_case_page(made, tmp_path / "b.html").read_bytes() == build_case_page(made, page).read_bytes()


def test_foreign_text_is_shown_and_harmless(signer: Signer) -> None:
    made = document(signer, requests=[request(1, reason=NASTY.replace("\x00", ""), ticket="<b>")])
    page = case_html(made)
    assert "&lt;script&gt;" in page
    assert "<b>" not in page
    assert "\u202e" not in page
    assert case_pdf(made).startswith(b"%PDF-")


def test_text_on_one_line() -> None:
    assert visible(" a\n\tb\x00\u2066c ") == "a b\ufffd\ufffdc"
    assert len(visible("x" * 1000)) == 300


AGAIN = {
    **AUDIT, "word": "not forgotten", "basis": "retrained", "reasons": ["not forgotten: forget accuracy is 0.980."],
    "tests": [
        {"name": "forget accuracy", "value": 0.98, "reference": 0.91},
        {"name": "U-LiRA AUC", "value": 0.71, "reference": 0.5},
    ],
    "attacks": [*AUDIT["attacks"],
                {"model": "unlearned", "signal": "U-LiRA", "auc": 0.71, "auc_low": 0.66, "auc_high": 0.76}],
}  # fmt: skip


def test_against_models_trained_again(signer: Signer) -> None:
    text = words(document(signer, audit=AGAIN))
    assert "Trained again" in text
    assert "98.0 % 95.0 to 99.2 % 91.0 %" in text
    assert "0.710 0.660 to 0.760 0.500" in text
    assert "The model still shows that it knows the samples." in text


def test_an_exact_method_says_so(signer: Signer) -> None:
    made = document(signer, unlearning={**UNLEARNING, "method": "retrain"}, plan={**PLAN, "exact": True})
    text = words(made)
    assert "retrain (exact)" in text
    assert "by construction, no weight of the new model was computed from the samples" in text
    assert "not a proof" not in text


def test_many_classes_and_requests(signer: Signer) -> None:
    rows = [
        {**SIDE_EFFECTS[0], "class": f"c{i}", "data": "test", "change": -i / 1000, "low": -i / 1000 - 0.01,
         "high": -i / 1000 + 0.01, "gone": i == 3}
        for i in range(50)
    ]  # fmt: skip
    made = document(signer, requests=[request(i) for i in range(1, 151)], side_effects=rows)
    story = tell(made)
    tables = {section.title: section.table for section in story.sections if section.table is not None}
    classes = [row[0] for row in tables["What it cost, class by class"].rows]
    assert classes == [f"c{i}" for i in range(49, 29, -1)]
    assert len(tables["What was asked"].rows) == 100
    text = words(made)
    assert "50 more requests are in the case file" in text
    assert "30 more are in the case file" in text
    assert "Deleted as a whole, so that the model was meant to lose it: c3." in text


def test_what_remains(signer: Signer) -> None:
    gone = version("older", deleted_at=AT)
    assert "No stored version of the model that knows the samples is left" in words(
        document(signer, remains=[Remaining(gone)])
    )
    both = words(document(signer, remains=[Remaining(gone), Remaining(version("old"))]))
    assert "deleted on 1 March 2026" in both
    assert "no date of deletion is set" in both
    assert "names no older version" in words(document(signer, remains=[]))


def test_a_case_without_measurements(signer: Signer) -> None:
    made = document(signer, audit={}, side_effects=[], plan={}, unlearning={})
    text = words(made)
    assert "not audited" in text
    assert "Whether the samples are forgotten is not known" in text
    assert "The effect on single classes was not measured" in text
    assert "What the method could see" not in text
    assert case_pdf(made).startswith(b"%PDF-")


def test_what_is_no_case_is_refused_in_one_sentence(signer: Signer, tmp_path: Path) -> None:
    made = document(signer)
    del made["content"]["versions"]["after"]
    for build in (build_case_page, build_case_pdf):
        with pytest.raises(UsageError, match="is not complete"):
            build(made, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def texts(story: Story) -> Iterator[str]:
    def of(section: Section) -> Iterator[str]:
        yield from (section.title, *section.paragraphs, *section.points)
        for pair in section.facts:
            yield from pair
        for row in section.table.rows if section.table is not None else ():
            for cell in row:
                yield cell if isinstance(cell, str) else "\n".join(cell)

    yield from (story.title, story.meaning, story.basis)
    for section in story.sections:
        yield from of(section)


def test_the_pdf_says_what_the_page_says(signer: Signer, monkeypatch: pytest.MonkeyPatch) -> None:
    made = document(signer, audit=AGAIN)
    drawn: list[str] = []
    shown = pdf_module._Sheet.shown

    def noted(self: Any, text: str) -> str:
        drawn.append(text.removeprefix("•  "))
        return shown(self, text)

    monkeypatch.setattr(pdf_module._Sheet, "shown", noted)
    case_pdf(made)
    page = words(made)
    for text in texts(tell(made)):
        assert text in drawn
        assert re.sub(r"\s+", " ", text) in page.replace("&#39;", "'")


def test_the_pdf_has_the_picture_of_the_page(signer: Signer) -> None:
    made = document(signer)
    assert b"/Subtype /Image" in case_pdf(made)
    made["content"]["audit"]["attacks"] = []
    assert b"/Subtype /Image" not in case_pdf(made)


def test_equal_cases_give_equal_pdfs(signer: Signer, tmp_path: Path) -> None:
    made = document(signer)
    path = build_case_pdf(made, tmp_path / "a.pdf")
    assert path.read_bytes() == case_pdf(made)
    assert case_pdf(document(signer, made_at=AT + timedelta(days=1))) != case_pdf(made)
    assert [one.name for one in tmp_path.iterdir()] == ["a.pdf"]


def test_a_pdf_that_cannot_be_written(signer: Signer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExpungeError, match="choose another folder"):
        build_case_pdf(document(signer), tmp_path / "file" / "a.pdf")


@in_browser
def test_a_phone_shows_the_page_without_scrolling_sideways(signer: Signer, tmp_path: Path) -> None:
    """Tables and pictures scroll within themselves; the page itself is as wide as the screen."""
    page = build_case_page(document(signer, requests=[request(1, reason="x" * 250)]), tmp_path / "a.html")
    frame = tmp_path / "frame.html"
    probe = "document.title=String(f.contentDocument.documentElement.scrollWidth)"
    frame.write_text(f'<title>-</title><iframe id="f" src="{page.name}" width="390" height="800" onload="{probe}">')
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--dump-dom"]
    done = subprocess.run([*command, frame.as_uri()], capture_output=True, text=True, timeout=120)
    found = re.search(r"<title>(\d+)</title>", done.stdout)
    assert found is not None, done.stderr
    assert int(found[1]) <= 390
