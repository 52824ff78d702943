"""Builds the FastAPI application: engine, metrics, routes, middleware, lifespan."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from service import __version__
from service.api import demo_page, errors, health, openapi
from service.api.auth import PROBES, Authenticate, admin_keys, known_keys
from service.api.compat import huggingface, openai, weaviate
from service.api.middleware import Head, Observe, RouteLabels
from service.api.native import bulk, heads, v1
from service.api.oip import repository
from service.api.oip import routes as oip
from service.api.oip.statistics import AllStatistics
from service.api.request.links import Links, make_fetcher
from service.devices.pool import WORKER
from service.engine.backend import Backend
from service.engine.engine import Engine
from service.errors import SettingsError
from service.heads.store import Heads
from service.registry.registry import Registry
from service.registry.sources import Sources
from service.settings import Settings
from service.telemetry.metrics import Metrics
from service.telemetry.multiprocess import MultiprocessDirectory
from service.telemetry.tracer import NoTracer, Tracer

_MODULES = v1, bulk, heads, openai, oip, repository, huggingface, weaviate, health, demo_page, openapi
CONTRACTS = tuple(one.router for one in _MODULES)
LABELS = RouteLabels(CONTRACTS)
REPORT_S = 0.25  # how often one of several HTTP processes reports its state


@dataclass(frozen=True, slots=True)
class ProcessContext:
    """What one of several HTTP processes receives from its parent."""

    backend: Backend
    metrics: MultiprocessDirectory
    statistics: AllStatistics  # of the Open Inference Protocol
    created: int  # when the service began, Unix time


class Application(FastAPI):
    """FastAPI with a corrected OpenAPI document (`service.api.openapi`)."""

    with_keys = False

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document; it is made once."""
        if self.openapi_schema is None:
            self.openapi_schema = openapi.corrected(super().openapi(), PROBES, with_keys=self.with_keys)
        return self.openapi_schema


def create_app(settings: Settings, worker: str = WORKER, context: ProcessContext | None = None) -> FastAPI:
    """Create the application with its own engine and metrics. Any ASGI server that runs the lifespan can serve it.

    VIM_METRICS_PORT is not served here; `service.server.metrics_port` does that.

    `worker` is the module that runs as the device process. With a `context` it is one of several HTTP processes that
    share the devices of their parent. Raises SettingsError.
    """
    metrics = make_metrics(settings, 0, context.metrics) if context else make_metrics(settings, settings.queue_images)
    backend = context.backend if context else Registry(settings, metrics, worker)
    tracer = _tracer(settings)
    engine = Engine(settings, metrics, backend, tracer)
    links = Links(engine, make_fetcher(settings))
    custom_heads = Heads(settings.heads_dir)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        await asyncio.to_thread(custom_heads.read_all)
        report = asyncio.create_task(_report(engine)) if context else None
        try:
            yield
        finally:
            if report:
                report.cancel()
            await engine.close()
            await links.close()
        if tracer.enabled:
            await asyncio.to_thread(tracer.close)

    app = Application(
        title="Vision Mamba server",
        description=openapi.INTRODUCTION,
        openapi_tags=openapi.TAGS,
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        telemetry=tracer.fastapi(),
        servers=[{"url": "."}],  # relative to the document, for proxies that strip a prefix
        redirect_slashes=False,  # Starlette would redirect to the host that the client sent
    )
    app.state.engine = engine
    app.state.links = links
    app.state.heads = custom_heads
    app.state.tracer = tracer
    app.state.admin_keys = admin_keys(settings)
    app.state.statistics = context.statistics if context else AllStatistics(settings.queue_images)
    app.state.created = context.created if context else int(time.time())
    for router in CONTRACTS:  # include_router would make every request match twice
        app.router.routes.extend(router.routes)
    for kind in errors.HANDLED:
        app.add_exception_handler(kind, errors.handle)
    _add_middleware(app, settings, engine, tracer)
    return app


def infer_app(app: FastAPI) -> ASGIApp:
    """The endpoint `infer` of the Open Inference Protocol, for requests within the process.

    Their scope has the path parameters. Middleware that only HTTP needs and FastAPI's routing are left out, because
    they take a tenth of the time of a small image. With VIM_TRACING it is the whole application, because FastAPI makes
    the spans.
    """
    engine: Engine = app.state.engine
    tracer: Tracer = app.state.tracer

    async def infer(scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = app
        response = await oip.infer(Request(scope, receive, send), scope["path_params"]["model"])
        await response(scope, receive, send)

    return app if tracer.enabled else Observe(infer, **_observed(engine, tracer))


def _observed(engine: Engine, tracer: Tracer) -> dict[str, Any]:
    """What the middleware Observe needs."""
    return {
        "metrics": engine.metrics,
        "labels": LABELS,
        "open_requests": engine.open_requests,
        "tracer": tracer,
        "backend": engine.backend,
    }


def _add_middleware(app: Application, settings: Settings, engine: Engine, tracer: Tracer) -> None:
    """Add the middleware; the last one that is added runs first."""
    app.add_middleware(Head)
    if known := known_keys(settings):
        app.with_keys = True
        app.add_middleware(Authenticate, known=known)
    if settings.cors_origins:
        app.add_middleware(CORSMiddleware, **_cors(settings.cors_origins))
    app.add_middleware(Observe, **_observed(engine, tracer))


def make_metrics(settings: Settings, queue_capacity: int, shared: MultiprocessDirectory | None = None) -> Metrics:
    """The metrics of one process of the service. The capacities of all processes are summed up."""
    metrics = Metrics(
        queue_capacity=queue_capacity, apis=[*LABELS.apis, "grpc"], devices=settings.devices, shared=shared
    )
    for name in Sources.of(settings).names():  # the default model is the first
        metrics.model(name)
    return metrics


async def _report(engine: Engine) -> None:
    """Report the state of this HTTP process, and free memory that it no longer uses, every `REPORT_S`."""
    while True:
        await asyncio.sleep(REPORT_S)
        engine.report()
        engine.backend.slots.trim()


def _tracer(settings: Settings) -> Tracer:
    """The tracer that VIM_TRACING selects; OpenTelemetry is optional and imported only here. Raises SettingsError."""
    if not settings.tracing:
        return NoTracer()
    try:
        from service.telemetry.tracing import OpenTelemetryTracer
    except ImportError as error:
        raise SettingsError(f"VIM_TRACING needs OpenTelemetry's SDK (pip install '.[tracing]'): {error}") from None
    return OpenTelemetryTracer()


def _cors(origins: str) -> dict[str, Any]:
    """The CORS settings, without credentials: scripts send the API key themselves, the browser adds no cookies."""
    return {
        "allow_origins": [origin.strip() for origin in origins.split(",")],
        "allow_methods": ["GET", "POST"],
        "allow_headers": ["*"],
        "expose_headers": ["X-Request-ID", "Server-Timing", "Retry-After", "X-Shape", "X-Model-Fingerprint"],
    }
