"""Serves /metrics on a separate port (VIM_METRICS_PORT), with the connection limits of the main port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

from service.server.protocol import Protocol, protocol
from service.settings import Settings
from service.telemetry.metrics import Metrics


@asynccontextmanager
async def metrics_port(settings: Settings, metrics: Metrics) -> AsyncIterator[None]:
    """Serve the metrics on their port, if it is set. Raises OSError if the port cannot be used."""
    if settings.metrics_port is None:
        yield
        return
    kind = protocol(settings.header_timeout_ms / 1000)
    config = uvicorn.Config(
        _page(metrics),
        http=kind,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
    )
    config.load()
    state = ServerState()

    def connection() -> Protocol:
        return kind(config=config, server_state=state, app_state={})

    server = await asyncio.get_running_loop().create_server(connection, settings.host, settings.metrics_port)
    try:
        yield
    finally:
        server.close()
        for one in list(state.connections):
            one.shutdown()


def _page(metrics: Metrics) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body, content_type = metrics.render(Headers(scope=scope).get("accept", ""))
        found = scope["path"] in ("/", "/metrics")
        answer = Response(body, headers={"Content-Type": content_type}) if found else Response(status_code=404)
        await answer(scope, receive, send)

    return app
