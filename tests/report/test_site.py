"""The site: its pages, its links, and what a browser makes of it at two widths."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from expunge.core.errors import UsageError
from expunge.report.drill import drill
from expunge.report.site import SiteStudy, build_site, slug
from expunge.report.summarise import blocks
from tests.report.test_report import FORGET, cell

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
in_browser = pytest.mark.skipif(not CHROMIUM, reason="needs chromium")


def study(name: str, scenario: str, data: str) -> SiteStudy:
    cells = [cell(method, seed, values[seed]) for method, values in FORGET.items() for seed in (0, 1)]
    cells = [
        one.model_copy(update={"scenario": {**one.scenario, "label": scenario}, "data": {**one.data, "name": data}})
        for one in cells
    ]
    failed = cell("neggrad", 0, 0.0, state="failed", error="diverged", scores=[], curves={})
    lost = failed.model_copy(update={"scenario": {"label": scenario}, "data": {}})
    return SiteStudy(name, [*cells, lost], title=f"Study {name}", about="a hundredth of the data")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    build_site([study("one", "class: <b>3</b>", "digits"), study("two", "a random 10 %", "mnist")], out)
    return out


class Links(html.parser.HTMLParser):
    """Addresses that a page loads or leads to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.linked: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "href" and tag == "a":
                self.linked.append(value or "")
            elif name in ("src", "href") and value and not value.startswith("#"):
                self.loaded.append(value)


def test_every_page_is_whole_and_every_link_leads_somewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) == 1 + 5 + 2 + 2  # index, methods, scenarios, studies
    for page in pages:
        found = Links(page.read_text())
        assert not found.loaded, page
        for link in found.linked:
            if not link.startswith(("https://arxiv.org/", "#")):
                assert (page.parent / unquote(link.partition("#")[0])).is_file(), (page, link)


def test_names_of_users_cannot_become_markup(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert "<b>3</b>" not in page.read_text()
    data = re.search(r'id="data">(.*?)</script>', (site / "scenarios/one-1.html").read_text())
    assert data is not None
    assert json.loads(data[1])["models"][0]["label"] == "original"


def test_cards_say_what_the_catalogue_says(site: Path) -> None:
    page = (site / "methods/scrub.html").read_text()
    for text in ("Towards Unbounded Machine Unlearning", "https://arxiv.org/abs/2302.09880", "gamma CE", "inputs only"):
        assert text in page
    assert page.count('data-study="') == 2  # its results in both studies


def test_failed_methods_have_their_rows(site: Path) -> None:
    index = (site / "index.html").read_text()
    assert index.count('data-method="neggrad"') == 2
    assert "failed" in index


def test_what_is_drawn_is_what_was_stored() -> None:
    (block,) = blocks(study("one", "x", "digits").cells)
    data = drill(block)
    assert data["forgotten"] == [0]
    assert data["seeds"] == ["0", "1"]
    one = next(model for model in data["models"] if model["label"] == "scrub")["seeds"]["1"]
    dense = np.zeros((2, 2), int)
    for true, called, count in one["confusion"]["test"]:
        dense[true, called] = count
    assert dense.tolist() == [[20, 5], [5, 20]]
    assert one["losses"]["forget"] == [0.1, 1.0]
    assert "neggrad" not in [model["label"] for model in data["models"]]


def test_cells_without_curves_and_no_cells(tmp_path: Path) -> None:
    cells = [one.model_copy(update={"curves": {}}) for one in study("one", "x", "digits").cells]
    build_site([SiteStudy("bare", cells)], tmp_path)
    assert '"models":[]' in (tmp_path / "scenarios/bare-1.html").read_text()
    with pytest.raises(UsageError, match="nothing to report"):
        build_site([SiteStudy("none", [])], tmp_path)


def test_file_names_are_safe_and_distinct() -> None:
    taken: set[str] = set()
    assert [slug(name, taken) for name in ("neggrad", "neggrad+", "../Ä", "...")] == [
        "neggrad", "neggrad-plus", "x", "x-2"
    ]  # fmt: skip


def browse(page: Path, fragment: str = "", width: int = 1200, after: str = "") -> str:
    """The page as the browser has it once its scripts ran; `after` is a script that runs at the end."""
    copy = page.with_name(f"tried-{page.name}")
    copy.write_text(page.read_text().replace("</body>", f"<script>{after}</script></body>"))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom",
               "--virtual-time-budget=3000", f"--window-size={width},900", f"{copy.as_uri()}{fragment}"]  # fmt: skip
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    finally:
        copy.unlink()
    assert "CONSOLE" not in ran.stderr, ran.stderr
    return ran.stdout


def shown(dom: str) -> int:
    """Rows of the leaderboard that are not hidden."""
    rows = re.findall(r"<tr class=\"[^\"]*\" data-data[^>]*>", dom)
    return sum("hidden" not in row for row in rows)


@in_browser
@pytest.mark.parametrize(
    ("fragment", "count"), [("", 10), ("#data=mnist", 5), ("#study=one&method=scrub", 1), ("#data=unheard", 10)]
)
def test_filters_follow_the_address(site: Path, fragment: str, count: int) -> None:
    dom = browse(site / "index.html", fragment)
    assert shown(dom) == count
    assert f"{count} of 10 rows" in dom


@in_browser
def test_columns_sort(site: Path) -> None:
    click = "[...document.querySelectorAll('th button')].find((b) => b.textContent === 'forget').click();"
    dom = browse(site / "index.html", "#data=mnist", after=click)
    order = [m for m, tag in re.findall(r'data-method="([^"]+)"([^>]*)>', dom) if "hidden" not in tag]
    assert order == ["retrain", "scrub", "finetune", "original", "neggrad"]  # what has no number comes last


@in_browser
@pytest.mark.parametrize("width", [1200, 390])
@pytest.mark.parametrize("place", ["index.html", "methods/scrub.html", "scenarios/one-1.html", "studies/one.html"])
def test_no_page_is_wider_than_its_window(site: Path, place: str, width: int) -> None:
    # A window is at least 500 wide, a frame is as narrow as a phone; frames of files may only send messages.
    framed = site / "framed.html"
    measure = "parent.postMessage([document.documentElement.scrollWidth, innerWidth].join(' of '), '*');"
    page = (site / place).read_text().replace("</body>", f"<script>{measure}</script></body>")
    inner = (site / place).with_name("inner.html")
    inner.write_text(page)
    framed.write_text(
        f'<!DOCTYPE html><title>none</title><body style="margin:0"><iframe src="{inner.as_uri()}" height=900 '
        f'width={width} style="border:0"></iframe><script>onmessage = (e) => {{ document.title = e.data; }};</script>'
        "</body>"
    )
    try:
        wide = re.search(r"<title>(\d+) of (\d+)</title>", browse(framed, width=1400))
    finally:
        inner.unlink()
        framed.unlink()
    assert wide is not None
    assert int(wide[1]) <= int(wide[2]) == width


@in_browser
def test_the_attack_follows_its_threshold(site: Path) -> None:
    dom = browse(site / "scenarios/one-1.html", "#b=scrub&threshold=0.5&seed=1")
    told = re.findall(r'<p id="told-[ab]">(.*?)</p>', dom)
    # Of losses 0.1 and 1.0 one is below, of 0.1 and 0.2 both are; pairs: a tie, a win, two defeats.
    assert len(told) == 2
    for text in told:
        assert "50.0 % of those to forget, 100.0 % of the unseen" in text
        assert "AUC over all thresholds 0.38" in text
    assert '<option value="scrub" selected' in dom or 'class="name b">scrub' in dom
    assert len(re.findall(r'<rect class="fill-b"', dom)) == 2 + 2  # bars of two classes, two fields of the matrix
