"""The one page: a shell made here, and a script and a style of our own that the service gives out itself."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from fastapi import APIRouter, Response
from fastapi.responses import HTMLResponse

from expunge.core.version import __version__
from expunge.report.environment import environment, stylesheet
from expunge.requests.records import STATES

_PACKAGE = "expunge.requests.service"
# Styles may stand in the page: the case file, opened from here, brings its own along and inherits this policy.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
router = APIRouter(include_in_schema=False)


@router.get("/")
def show() -> HTMLResponse:
    """Holds no data: the script asks for them, with the token."""
    return HTMLResponse(_shell(), headers={"Content-Security-Policy": _POLICY})


@router.get("/service.js")
def script() -> Response:
    return Response(_text("service.js"), media_type="text/javascript")


@router.get("/service.css")
def style() -> Response:
    return Response(f"{stylesheet()}\n{_text('service.css')}", media_type="text/css")


@cache
def _shell() -> str:
    return environment(_PACKAGE).get_template("service.html").render(version=__version__, states=STATES)


@cache
def _text(name: str) -> str:
    return files(_PACKAGE).joinpath("templates", name).read_text(encoding="utf-8")
