"""The service as an ASGI application: the gate, the API, the page."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from expunge.core.options import build
from expunge.core.version import __version__
from expunge.requests.desk import Desk
from expunge.requests.service import page, routes
from expunge.requests.service.answers import API, add_handlers
from expunge.requests.service.gate import LOOPBACK, Gate
from expunge.requests.service.jobs import Jobs
from expunge.requests.service.limits import ServiceLimits


def create_app(
    open_desk: Callable[[], Desk],
    token: str,
    limits: ServiceLimits | None = None,
    *,
    hosts: Collection[str] = LOOPBACK,
) -> FastAPI:
    """The application over one workspace.

    open_desk: opens a desk on it; called at once, and for every job. hosts: names, without port, that callers may use.
    Raises `UsageError` as `Desk.open` does.
    """
    service = routes.Service(open_desk(), Jobs(open_desk))

    @asynccontextmanager
    async def life(_app: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await run_in_threadpool(service.jobs.close)
            service.desk.close()

    app = FastAPI(
        title="Expunge: deletion requests",
        version=__version__,
        description="Take in deletion requests, fulfil them, prove it, undo it. See `expunge docs service`.",
        openapi_url=f"{API}/openapi.json",
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
        lifespan=life,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.service = service
    add_handlers(app)
    for router in (routes.public, routes.router, page.router):
        app.include_router(router)
    app.add_middleware(Gate, token=token, limits=limits or build(ServiceLimits, {}), hosts=hosts)
    return app
