"""Wiring: the FastAPI application, its lifespan, and the one place where errors become HTTP."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match

from service import __version__
from service.api import bulk, demo_page, health, huggingface, openai, openapi, v1, weaviate
from service.api.auth import PROBES, Gate, known_keys
from service.api.middleware import APIS, Direct, Head, Observe, operation_of
from service.api.oip import routes as oip
from service.api.oip import statistics
from service.api.responses import JsonResponse
from service.devices.pool import WORKER
from service.engine.engine import Engine
from service.errors import (
    InternalError,
    InvalidOptions,
    MethodNotAllowed,
    NotFound,
    ServiceError,
    SettingsError,
    bare,
    headers,
    problem,
)
from service.server.prefork.remote_pool import Outpost
from service.server.protocol import listening
from service.settings import Settings
from service.telemetry.metrics import Metrics
from service.telemetry.multiprocess import Shared
from service.telemetry.shared_counters import Tally

if TYPE_CHECKING:
    from service.telemetry.tracing import Traces

log = logging.getLogger("vim.app")


class Application(FastAPI):
    """FastAPI, with an OpenAPI document that says what is really sent."""

    with_keys = False

    def openapi(self) -> dict[str, Any]:
        """The document, made once."""
        if self.openapi_schema is None:
            self.openapi_schema = openapi.corrected(super().openapi(), PROBES, with_keys=self.with_keys)
        return self.openapi_schema


def create_app(settings: Settings, worker: str = WORKER, outpost: Outpost | None = None) -> FastAPI:
    """The application, with its own engine and metrics; any ASGI host that runs the lifespan can serve it.

    `worker` is the module that runs as the device process; tests put faulty ones there. With an `outpost` it is one of
    several HTTP processes in front of the same devices.
    """
    shared = outpost.shared if outpost else None
    metrics = counted(settings, shared, (settings.share if outpost else settings).queue_images)
    traces = _traces() if settings.tracing else None
    make = traces.engine if traces else Engine
    engine = make(settings, metrics, worker, outpost)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with nullcontext() if outpost else metrics_port(settings, metrics):
            engine.start()
            try:
                yield
            finally:
                await engine.close()
        if traces:
            await asyncio.to_thread(traces.close)

    # Without a word FastAPI would trace by whatever the process has set up globally.
    telemetry: Any = traces.fastapi() if traces else {"tracing": False, "metrics": False, "logs": False}
    app = Application(
        title="Vision Mamba server",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        telemetry=telemetry,
        redirect_slashes=False,  # Starlette would build the address from whatever Host the client claims
    )
    app.state.engine = engine
    app.state.traces = traces
    tally = outpost.tally if outpost else Tally.of_one(statistics.numbers(settings.queue_images))
    app.state.statistics = statistics.counted(oip.both(settings.served_name), tally, settings.queue_images)
    app.state.created = outpost.begin.created if outpost else int(time.time())
    for contract in (v1, bulk, openai, oip, huggingface, weaviate, health, demo_page, openapi):
        app.include_router(contract.router)
    for kind in (ServiceError, RequestValidationError, HTTPException, ClientDisconnect):
        app.add_exception_handler(kind, _handle)
    if not traces:  # which name their spans by the route
        app.add_middleware(Direct, posts=_posts(), answer=_handle, full=engine.full)
    app.add_middleware(Head)
    if known := known_keys(settings):
        app.with_keys = True
        app.add_middleware(Gate, known=known, refuse=lambda scope, error: _answer(Request(scope), error))
    if settings.cors_origins:
        app.add_middleware(CORSMiddleware, **_cors(settings.cors_origins))
    app.add_middleware(
        Observe,
        metrics=metrics,
        model=settings.served_name,
        answer=_answer,
        unanswered=engine.unanswered,
        traces=traces,
    )
    return app


def _traces() -> Traces:
    """Its libraries are an extra, and are imported only here. Raises SettingsError."""
    try:
        from service.telemetry.tracing import Traces
    except ImportError as error:
        raise SettingsError(f"VIM_TRACING needs OpenTelemetry's SDK (pip install '.[tracing]'): {error}") from None
    return Traces()


def counted(settings: Settings, shared: Shared | None, slots: int) -> Metrics:
    """The metrics of one process of the service, that admits so many images."""
    return Metrics(
        model=settings.served_name,
        queue_capacity=slots,
        apis=APIS,
        devices=settings.devices,
        shared=shared,
    )


def metrics_port(settings: Settings, metrics: Metrics) -> AbstractAsyncContextManager[None]:
    """/metrics on a port of its own, if it has one. Raises OSError when entered."""
    if settings.metrics_port is None:
        return nullcontext()
    return listening(health.scraped(metrics), settings.host, settings.metrics_port, settings.header_timeout_ms / 1000)


def _cors(origins: str) -> dict[str, Any]:
    """Without credentials: a key is sent by the page's own script, never by the browser on its own."""
    return {
        "allow_origins": [origin.strip() for origin in origins.split(",")],
        "allow_methods": ["GET", "POST"],
        "allow_headers": ["*"],
        "expose_headers": ["X-Request-ID", "Server-Timing", "Retry-After", "X-Shape", "X-Model-Fingerprint"],
    }


def _posts() -> dict[str, Any]:
    """What is asked most often: path -> endpoint."""
    return {route.path: route.endpoint for route in v1.router.routes if isinstance(route, APIRoute)}


async def _handle(request: Request, error: Exception) -> Response:
    """A coroutine: a plain function would be sent to a thread."""
    return await _client_gone(request, error) if isinstance(error, ClientDisconnect) else _answer(request, error)


def _methods(request: Request) -> str:
    """For `Allow`: all methods that a path takes, whichever routes they belong to."""

    def taken(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] == Match.FULL for route in request.app.routes)

    return ", ".join((["GET", "HEAD"] if taken("GET") else []) + (["POST"] if taken("POST") else []))


async def _client_gone(request: Request, _: Exception) -> Response:
    """Nobody reads this answer; its status is for the log and the metrics, where nginx uses the same number."""
    request.app.state.engine.metrics.rejected("client_gone")
    request.state.code = "client_gone"
    return Response(status_code=499)


def _answer(request: Request, error: Exception) -> Response:
    known = _translate(error)
    bare(error)
    if operation_of(request.scope):  # a probe that is told "not ready" is no rejection
        request.app.state.engine.metrics.refused(known)
    request.state.code = known.code
    path = request.scope["path"]
    render = openai.problem if openai.speaks(path) else problem
    body = render(known, instance=path, request_id=getattr(request.state, "request_id", ""))
    extra = {"Allow": _methods(request)} if isinstance(known, MethodNotAllowed) else {}
    return JsonResponse(body, known.status, headers(known) | extra)


def _translate(error: Exception) -> ServiceError:
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, RequestValidationError):
        return _invalid(error)
    if isinstance(error, HTTPException):
        return _from_http(error)
    log.error("unforeseen", exc_info=error)
    return InternalError("an internal error; the log has the details under this request id")


def _invalid(error: RequestValidationError) -> InvalidOptions:
    found = [{"loc": ".".join(map(str, e["loc"][1:])), "msg": _message(e)} for e in error.errors()]
    return InvalidOptions("; ".join(f"{e['loc']}: {e['msg']}" for e in found), errors=found)


def _message(error: dict[str, object]) -> str:
    return "unknown option" if error["type"] == "extra_forbidden" else str(error["msg"])


def _from_http(error: HTTPException) -> ServiceError:
    if error.status_code == 404:
        return NotFound("no such path; /docs lists them")
    if error.status_code == 405:
        return MethodNotAllowed("this path does not take that method; /docs lists them")
    return InternalError(str(error.detail))
