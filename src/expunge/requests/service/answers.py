"""Answers that are errors: always JSON with one sentence, never a traceback."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request as Call

from expunge.core.errors import ExpungeError, UsageError

API = "/api/v1"
log = logging.getLogger("expunge.service")


class Error(BaseModel):
    """Why a call was refused, or failed."""

    error: str = Field(description="One sentence: the thing, the value, what is allowed.")


class HTTPRefusal(Exception):
    """A call that gets another status than its error would have by itself."""

    def __init__(self, status: int, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.headers = status, headers


_WORDS = {
    400: "Understood, but it cannot be right.",
    401: "The token is missing or wrong.",
    404: "There is no such thing.",
    409: "Not in the state that things are in now.",
    413: "The body is too large.",
    415: "Not a content type that this call reads.",
    422: "Not what the schema says.",
    429: "Too many calls; see the header Retry-After.",
    503: "The ledger or a file cannot be used now.",
}
_ALWAYS = (400, 401, 413, 422, 429, 503)


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For `responses=`: the errors that every call may answer with, and `statuses`."""
    return {one: {"model": Error, "description": _WORDS[one]} for one in sorted({*_ALWAYS, *statuses})}


def error_answer(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The sentence may hold what a stranger sent: what cannot be encoded is replaced."""
    said = sentence.encode("utf-8", "replace").decode()
    return JSONResponse({"error": said}, status, headers=dict(headers or {}))


def add_handlers(app: FastAPI) -> None:
    """Every exception becomes one sentence. Those that are a defect are logged with their traceback."""
    app.add_exception_handler(HTTPRefusal, _refused)
    app.add_exception_handler(ExpungeError, _expunge)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _defect)


def _refused(_call: Call, error: Exception) -> JSONResponse:
    return error_answer(getattr(error, "status", 400), str(error), getattr(error, "headers", None))


def _expunge(_call: Call, error: Exception) -> JSONResponse:
    return error_answer(400 if isinstance(error, UsageError) else 503, str(error))


def _invalid(_call: Call, error: Exception) -> JSONResponse:
    found = error.errors() if isinstance(error, RequestValidationError) else []
    return error_answer(422, " ".join(_findings(found)) or "the call is not what the schema says.")


def _findings(found: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    for item in list(found)[:5]:
        place = ".".join(str(part)[:40] for part in item["loc"] if part not in ("body", "query", "path"))
        message = str(item["msg"])[:200]
        yield f"{f'`{place}`: ' if place else ''}{message[:1].lower()}{message[1:].rstrip('.')}."


def _http(_call: Call, error: Exception) -> JSONResponse:
    status = getattr(error, "status_code", 500)
    detail = str(getattr(error, "detail", "")) or "no message"
    sentence = {404: "there is no such address.", 405: "this address does not take that method."}.get(status, detail)
    return error_answer(status, sentence, getattr(error, "headers", None))


def _defect(call: Call, error: Exception) -> JSONResponse:
    log.error("%s %s failed", call.method, call.url.path, exc_info=error)
    return error_answer(500, f"unexpected {type(error).__name__}; the log of the service says where.")
