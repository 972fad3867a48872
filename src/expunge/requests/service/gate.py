"""What every call passes before anything reads it: the name of the host, the rate, the token, the size.

The host's name is checked because a page elsewhere can have its own name point here (DNS rebinding). The token comes
before the body is looked at, so that who has none learns nothing, and makes nothing work.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Collection, Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from expunge.requests.service.answers import API, error_answer
from expunge.requests.service.limits import Rate, ServiceLimits

OPEN = frozenset({f"{API}/health", f"{API}/openapi.json"})  # without a token
IMPORT = f"{API}/requests/import"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
_HOST = re.compile(r"(?:\[(?P<literal>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9._-]+))(?::[0-9]{1,5})?")

_HEADERS: Mapping[str, str] = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}


class Gate:
    """ASGI middleware. hosts: names, without port, by which the service may be called."""

    def __init__(self, app: ASGIApp, *, token: str, limits: ServiceLimits, hosts: Collection[str]) -> None:
        self._app, self._limits = app, limits
        self._token = token.encode()
        self._hosts = {host.lower() for host in hosts}
        self._rate = Rate(limits.per_second, limits.burst)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return  # no websockets here
        client = scope["client"][0] if scope.get("client") else ""
        headers = Headers(scope=scope)

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                ours = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    ours.setdefault(name, value)
            await send(message)

        most = self._limits.import_bytes if scope["path"] == IMPORT else self._limits.body_bytes
        refused = self._refused(scope["path"], headers, client, most)
        if refused is not None:
            status, sentence, more = refused
            await error_answer(status, sentence, more)(scope, receive, guarded)
            return
        await self._app(scope, _counted(receive, most), guarded)

    def _refused(self, path: str, headers: Headers, client: str, most: int) -> tuple[int, str, dict[str, str]] | None:
        """(status, sentence, headers) of the answer to a call that must not pass."""
        names = headers.getlist("host")
        if len(names) != 1 or _host(names[0]) not in self._hosts:
            return 400, f"this service answers to the host names {', '.join(sorted(self._hosts))} only.", {}
        if wait := self._rate.wait(client):
            return 429, f"too many calls; try again in {wait} s.", {"Retry-After": str(wait)}
        if path.startswith(f"{API}/") and path not in OPEN and not self._known(headers.getlist("authorization")):
            return 401, _unknown(headers.getlist("authorization")), {"WWW-Authenticate": "Bearer"}
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            return 400, "the header Content-Length must be a number.", {}
        if len(length) > 18 or int(length) > most:
            return 413, _too_large(most), {}
        return None

    def _known(self, given: list[str]) -> bool:
        scheme, _, token = (given[0] if len(given) == 1 else "").partition(" ")
        same = hmac.compare_digest(token.strip().encode("latin-1", "replace"), self._token)  # in constant time
        return same and scheme.lower() == "bearer"


def _unknown(given: list[str]) -> str:
    """What is wrong with the credentials of a call; says nothing about the right ones."""
    if not given:
        return "this call needs the token, in the header `Authorization: Bearer TOKEN`."
    if len(given) > 1 or not given[0].lower().startswith("bearer "):
        return "the token must come once, in the header `Authorization: Bearer TOKEN`."
    return "the token is wrong; each start of the service draws a new one unless it is given by --token-file."


def _host(header: str) -> str:
    """The name in a Host header, without the port; empty if it is not one.

    >>> [_host(text) for text in ("LocalHost:8777", "[::1]:80", "127.0.0.1", "evil.test:8777", "[::1]evil", "a:b")]
    ['localhost', '::1', '127.0.0.1', 'evil.test', '', '']
    """
    found = _HOST.fullmatch(header)
    return (found["literal"] or found["name"]).lower() if found else ""


def _counted(receive: Receive, most: int) -> Receive:
    """For bodies that do not say how long they are."""
    size = 0

    async def counting() -> Message:
        nonlocal size
        message = await receive()
        if message["type"] == "http.request":
            size += len(message.get("body", b""))
            if size > most:
                raise HTTPException(413, _too_large(most))
        return message

    return counting


def _too_large(most: int) -> str:
    return f"the body is larger than the {most:,} bytes that this call takes."
