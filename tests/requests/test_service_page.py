"""The page in a real browser, served by the real command: from a request to its case file, on a phone's width too."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra `service`")
pytest.importorskip("playwright", reason="needs playwright")
from playwright.sync_api import expect, sync_playwright

from tests.requests.desks import make_desk

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed (Debian: apt-get install chromium)"),
]
LONG = 120_000  # milliseconds
MARKUP = "<img src=x onerror=alert(1)><script>alert(2)</script>" + "W" * 60
SHOTS = os.environ.get("EXPUNGE_SCREENSHOTS")  # a folder, for who wants to look


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("page")
    make_desk(place).close()
    return place / "desk"


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[tuple[str, str]]:
    """(address, token) of `expunge requests serve` on a free port."""
    command = [sys.executable, "-m", "expunge", "requests", "serve", "--workspace", str(folder), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    stream = process.stderr
    assert stream is not None
    try:
        line = stream.readline()
        found = re.match(r"(http://127\.0\.0\.1:\d+/)  \(token: (.*);", line)
        assert found, line + stream.read()
        token = Path(found[2])
        assert token.stat().st_mode & 0o777 == 0o600
        yield found[1], token.read_text().strip()
    finally:
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 0, said
    assert "Traceback" not in said


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_playwright() as runner:
        started = runner.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A new page; whatever it complains about fails the test."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    one = context.new_page()
    one.set_default_timeout(60_000)
    expect.set_options(timeout=60_000)
    complaints: list[str] = []
    one.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    one.on("pageerror", lambda error: complaints.append(str(error)))
    one.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
    yield one
    context.close()
    assert complaints == []


def shoot(page: Any, name: str) -> None:
    if SHOTS:
        page.screenshot(path=f"{SHOTS}/{name}.png", full_page=True)


def widths(page: Any) -> tuple[int, int]:
    return tuple(page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]"))


def enter(page: Any, address: str, token: str) -> None:
    page.goto(address)
    page.fill("#login input", token)
    page.click("#login button")
    page.wait_for_selector("#desk:not([hidden])")


def add(page: Any, subject: str, **more: str) -> None:
    page.fill("#add [name=subject]", subject)
    for name, value in more.items():
        page.fill(f"#add [name={name}]", value)
    page.evaluate("document.getElementById('added').textContent = ''")
    page.click("#add button")
    page.wait_for_selector("#added:has-text('received')")
    page.wait_for_selector("#add button:enabled")


def test_from_a_request_to_its_case_file(page: Any, service: tuple[str, str]) -> None:
    address, token = service
    page.goto(address)
    assert page.is_hidden("#desk")
    shoot(page, "login")
    enter(page, address, token)
    assert token not in page.content()

    add(page, "t3", reason=MARKUP, ticket="T-1", batch=MARKUP[:100])
    add(page, "t4", reason="moved away")
    rows = page.locator("#rows tr")
    expect(rows).to_have_count(2)
    page.click("#plan")
    page.wait_for_selector("#plan-lines:has-text('forget 6 of 120')")
    shoot(page, "planned")

    page.click("#fulfil")
    page.wait_for_selector("#job:not([hidden])")
    page.wait_for_selector("#job-what:has-text(' of ')", timeout=LONG)
    assert page.is_disabled("#fulfil")
    page.reload()  # the job goes on, and the page finds it again
    page.wait_for_selector("#job-bar:not([hidden])", timeout=LONG)
    shoot(page, "running")
    page.wait_for_selector("#job-state:has-text('Job done')", timeout=LONG)
    assert "fulfilment 1 (2 requests, 6 samples)" in page.inner_text("#job-outcome")
    page.wait_for_selector("#rows td:has-text('fulfilled')")
    assert page.is_enabled("#fulfil")

    page.click("#rows button >> text=1")
    page.wait_for_selector("#facts:has-text('<script>')")  # shown as it was written
    assert page.locator("#desk img, #desk script").count() == 0
    page.click("#verify")
    page.wait_for_selector("#findings:has-text('All checks hold.')")
    shoot(page, "detail")
    with page.expect_popup() as opened:
        page.click("#case-html")
    case = opened.value
    case.wait_for_selector("h1")
    assert case.url.startswith("blob:")
    assert "rgb" in case.evaluate("getComputedStyle(document.querySelector('.facts')).backgroundColor")
    assert case.evaluate("getComputedStyle(document.querySelector('.facts')).display") == "grid"  # its style is let in
    shoot(case, "case")
    with page.expect_download() as saved:
        page.click("#case-pdf")
    assert Path(saved.value.path()).read_bytes().startswith(b"%PDF-")
    with page.expect_download() as saved:
        page.click("#case-json")
    assert saved.value.suggested_filename == "case-of-request-1.json"

    page.click("#rollback")
    page.wait_for_selector("#confirm[open]")
    shoot(page, "confirm")
    page.click("#no")
    assert page.inner_text("#detail-title") == "Request 1: fulfilled"
    page.click("#rollback")
    page.click("#yes")
    page.wait_for_selector("#detail-title:has-text('rolled back')")
    page.click("#retry")
    page.click("#yes")
    page.wait_for_selector("#detail-title:has-text('received')")
    page.select_option("#state", "rolled back")
    expect(rows).to_have_count(1)


def test_at_phone_width_nothing_hangs_over(page: Any, service: tuple[str, str]) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(service[0])
    page.wait_for_selector("#login:not([hidden])")
    assert len(set(widths(page))) == 1
    enter(page, *service)
    add(page, "t9", reason=MARKUP * 3, ticket="T" * 200, batch="B" * 100)
    page.locator("#rows button").last.click()
    page.wait_for_selector("#facts:has-text('TTT')")
    shoot(page, "phone")
    assert len(set(widths(page))) == 1


def test_a_file_of_requests(page: Any, service: tuple[str, str], tmp_path: Path) -> None:
    enter(page, *service)
    good = tmp_path / "good.csv"
    good.write_text("subject,batch\nt20,file\nt21,file\n")
    page.set_input_files("#import input", good)
    page.click("#import button")
    page.wait_for_selector("#added:has-text('2 new requests')")
    page.fill("#batch", "file")
    page.press("#batch", "Enter")
    expect(page.locator("#rows tr")).to_have_count(2)


def test_refusals_are_said(browser: Any, service: tuple[str, str], tmp_path: Path) -> None:
    """On a page of its own, because the browser itself notes every refused call in its console."""
    page = browser.new_page()
    page.goto(service[0])
    page.fill("#login input", "wrong" * 8)
    page.click("#login button")
    page.wait_for_selector("#error:has-text('token')")
    assert page.is_hidden("#desk")
    enter(page, *service)
    page.fill("#add [name=subject]", "  ")
    page.click("#add button")
    page.wait_for_selector("#error:has-text('needs a subject')")
    bad = tmp_path / "bad.csv"
    bad.write_text("subject\nt22,more\n")
    page.set_input_files("#import input", bad)
    page.click("#import button")
    page.wait_for_selector("#error:has-text('the file, line 2: 2 values')")
    page.close()
