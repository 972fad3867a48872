"""`expunge docs`: what case files refer to can be read."""

from __future__ import annotations

import re
from pathlib import Path

from expunge.cli.docs import pages
from expunge.requests.case import story
from tests.cli.conftest import Call


def test_pages_are_listed_and_printed(expunge: Call) -> None:
    listed = expunge("docs")
    assert listed.code == 0
    assert re.search(r"^case-file +The case file$", listed.out, re.MULTILINE)
    assert expunge("docs", "case-file").out == pages()["case-file"].read_text()
    assert expunge("docs", "docs/service.md").out.startswith("# ")
    wrong = expunge("docs", "case-fil")
    assert (wrong.code, "did you mean `case-file`?" in wrong.err) == (2, True)


def test_the_page_that_case_files_name_is_there() -> None:
    (named,) = re.findall(r"expunge docs ([a-z-]+)", Path(story.__file__).read_text())
    assert named in pages()
