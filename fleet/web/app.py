"""The application: routes, headers of responses, and the loop that reads the repository again.

Rules:
- Every response has a strict content security policy: no script, no frame, nothing from elsewhere.
- `Host` is not interpreted. No request but a login changes what a viewer may see, and none changes a rollout.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from typing import Final

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bundle.errors import AirweightsError
from fleet.queries import read_release_counts, read_totals
from fleet.retention import forget
from fleet.web.lines import receive_lines
from fleet.web.metrics import CONTENT_TYPE, render_metrics
from fleet.web.page import show_device, show_devices, show_login, show_overview, show_release, show_style
from fleet.web.state import REFRESH_S, ServerState

logger = logging.getLogger(__name__)

POLICY: Final = (
    "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
FORGET_EVERY_S: Final = 86_400.0


def create_app(state: ServerState) -> Starlette:
    """Return the application of one server."""
    routes = [
        Route("/v1/lines", receive_lines, methods=["POST"]),
        Route("/", show_overview),
        Route("/release/{family}/{channel}/{release}", show_release),
        Route("/devices", show_devices),
        Route("/device/{name}", show_device),
        Route("/login", show_login, methods=["GET", "POST"]),
        Route("/style.css", show_style),
        Route("/metrics", show_metrics),
        Route("/health", show_health),
    ]
    app = Starlette(routes=routes, lifespan=_run_loop, exception_handlers={AirweightsError: show_unavailable})
    app.state.server = state
    app.add_middleware(_AddHeaders)
    return app


async def show_metrics(request: Request) -> Response:
    """Return the metrics; without a login only if the server is open."""
    state: ServerState = request.app.state.server
    if not state.login.is_open and not state.login.is_logged_in(request):
        return PlainTextResponse("send the token as a bearer token\n", 401, {"WWW-Authenticate": "Bearer"})

    def read() -> bytes:
        totals = read_totals(state.database, int(time.time()))
        return render_metrics(totals, read_release_counts(state.database), state.lines)

    return Response(await run_in_threadpool(read), media_type=CONTENT_TYPE)


async def show_health(request: Request) -> Response:
    """Return whether the repository could be read."""
    state: ServerState = request.app.state.server
    return JSONResponse({"ok": not state.problem, "problem": state.problem or None})


async def show_unavailable(_: Request, error: Exception) -> Response:
    """Return the error of a store that cannot be read."""
    assert isinstance(error, AirweightsError)
    return PlainTextResponse(f"{error.message}\n", 503)


@contextlib.asynccontextmanager
async def _run_loop(app: Starlette) -> AsyncIterator[None]:
    task = asyncio.create_task(_refresh_regularly(app.state.server))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        app.state.server.database.close()


async def _refresh_regularly(state: ServerState) -> None:
    forgotten_s = float("-inf")
    while True:
        try:
            await run_in_threadpool(state.refresh)
            if time.monotonic() - forgotten_s >= FORGET_EVERY_S:
                await run_in_threadpool(forget, state.database, int(time.time()))
                forgotten_s = time.monotonic()
        except (AirweightsError, OSError) as error:
            state.problem = f"the repository was not read again: {error}"
            logger.warning(state.problem)
        await asyncio.sleep(REFRESH_S)


class _AddHeaders:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                if "cache-control" not in headers:
                    headers["Cache-Control"] = "no-store"
            await send(message)

        await self._app(scope, receive, send_with_headers if scope["type"] == "http" else send)
