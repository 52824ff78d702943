"""What operators and orchestrators ask: is it alive, is it ready, what is it, how is it doing."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service import __version__
from service.api.responses import JsonResponse
from service.api.schemas import problems
from service.engine.engine import Engine
from service.errors import Draining, NotFound, NotReady
from service.telemetry.metrics import Metrics

router = APIRouter(tags=["operations"])


@router.get("/livez", responses=problems(503))
async def livez(request: Request) -> dict[str, str]:
    """200 while the event loop answers, whatever the load, also while a device process is replaced; 503 when that
    has failed for good.
    """
    engine: Engine = request.app.state.engine
    if engine.fleet.state == "failed":
        raise NotReady(engine.fleet.reason)
    return {"status": "alive"}


@router.get("/readyz", responses=problems(503))
@router.get("/health", responses=problems(503))
async def readyz(request: Request) -> dict[str, str]:
    """200 once the model is loaded, self-tested and warm; 503 before that, while draining, while a device process is
    being replaced, and while every decoding thread is overdue.
    """
    engine: Engine = request.app.state.engine
    if engine.fleet.state == "draining":
        raise Draining(engine.fleet.reason, retry_after_s=1)
    if engine.fleet.state != "ready":
        raise NotReady(engine.fleet.reason, retry_after_s=1)
    if engine.overdue:
        raise NotReady("every decoding thread is busy for longer than VIM_REQUEST_TIMEOUT_MS", retry_after_s=1)
    return {"status": "ready"}


@router.get("/info", response_model=dict[str, Any], responses=problems(503))
async def info(request: Request) -> Response:
    """Model, fingerprint, preprocessing, device, scan in use and why, limits, versions."""
    engine: Engine = request.app.state.engine
    return JsonResponse(
        engine.fleet.info
        | {"state": engine.fleet.state, "queue": {"images": engine.waiting}, "limits": _limits(engine)}
        | {"version": __version__}
    )


@router.get("/metrics", response_class=PlainTextResponse, responses=problems(404))
async def metrics(request: Request) -> Response:
    """Prometheus metrics, in the format that the Accept header asks for."""
    engine: Engine = request.app.state.engine
    if engine.settings.metrics_port is not None:
        raise NotFound("metrics have a port of their own (VIM_METRICS_PORT)")
    body, content_type = engine.metrics.render(request.headers.get("accept", ""))
    return Response(body, headers={"Content-Type": content_type})


def scraped(metrics: Metrics) -> ASGIApp:
    """The same page alone, for a port of its own."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body, content_type = metrics.render(Headers(scope=scope).get("accept", ""))
        found = scope["path"] in ("/", "/metrics")
        answer = Response(body, headers={"Content-Type": content_type}) if found else Response(status_code=404)
        await answer(scope, receive, send)

    return app


def _limits(engine: Engine) -> dict[str, Any]:
    settings = engine.settings
    return {
        "max_batch": engine.fleet.max_batch,
        "max_body_bytes": settings.max_body_bytes,
        "max_images": settings.max_images,
        "max_pixels": settings.max_pixels,
        "queue_images": settings.queue_images,
        "queue_bytes": settings.queue_bytes,
        "bulk_percent": settings.bulk_percent,
        "request_timeout_ms": settings.request_timeout_ms,
    }
