"""Binds a socket and runs the application on it until it is interrupted."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import uvicorn

from expunge.core.errors import UsageError
from expunge.core.options import build
from expunge.requests.desk import Desk
from expunge.requests.service.app import create_app
from expunge.requests.service.gate import LOOPBACK
from expunge.requests.service.limits import ServiceLimits
from expunge.requests.service.token import draw_token, read_token
from expunge.requests.workspace import Workspace

_CALLS = 64  # at the same time


def serve(
    workspace: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8777,
    token_file: Path | None = None,
    names: Sequence[str] = (),
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Serve a workspace until SIGINT or SIGTERM; a running job is then cancelled, and can be gone on with.

    token_file: one that exists; without it a token is drawn into the workspace. names: further host names that callers
    use. port: 0 takes a free one. Raises `UsageError` for a place that cannot be bound.
    """
    opened = Workspace.open(workspace)  # refused before anything is written or bound
    listening = _bind(host, port)
    with listening:
        if token_file is None:
            token, place = draw_token(opened.keys)
        else:
            token, place = read_token(token_file), token_file
        limits = build(ServiceLimits, opened.settings.service, "service")
        app = create_app(lambda: Desk.open(workspace), token, limits, hosts=[*LOOPBACK, host, *names])
        address, bound = listening.getsockname()[:2]
        if not ipaddress.ip_address(address).is_loopback:
            say(
                f"warning: {address} can be reached from other machines, and what is sent there is not encrypted; put "
                "a proxy with TLS in front, or serve on 127.0.0.1."
            )
        shown = f"[{address}]" if ":" in address else address
        say(f"http://{shown}:{bound}/  (token: {place}; Ctrl-C ends it)")
        settings = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, proxy_headers=False, ws="none",
            limit_concurrency=_CALLS, timeout_keep_alive=10, timeout_graceful_shutdown=5,
        )  # fmt: skip
        uvicorn.Server(settings).run(sockets=[listening])


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError):
        raise UsageError(f"`{host}` is no address of this machine; serve on 127.0.0.1.") from None
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()
    except OSError as error:
        listening.close()
        raise UsageError(f"cannot serve on {host}, port {port} ({error.strerror}); choose another --port.") from None
    return listening
