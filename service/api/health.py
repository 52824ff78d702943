"""Routes for operators and orchestrators: liveness, readiness, information, metrics."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import PlainTextResponse, Response

from service import __version__
from service.api.dependencies import engine_of, find
from service.api.responses import JsonResponse
from service.api.schemas import problems
from service.engine.engine import Engine
from service.engine.models import described
from service.errors import Draining, NotFound, NotReady
from service.images.formats import ACCEPTED
from service.status import ModelState

router = APIRouter(tags=["operations"])


@router.get("/livez", summary="Liveness", responses=problems(503))
async def livez(request: Request) -> dict[str, str]:
    """200 while the event loop answers, under any load, also while a device process is replaced; 503 once the service
    has given up its devices.
    """
    state = engine_of(request).backend.state.find()
    if state is not None and state.phase == "failed":
        raise NotReady(state.reason)
    return {"status": "alive"}


@router.get("/readyz", summary="Readiness", responses=problems(503))
@router.get("/health", summary="Readiness", responses=problems(503))
async def readyz(request: Request) -> dict[str, str]:
    """200 once the default model is loaded, tested and warmed up; 503 before that, while draining, while too few
    devices are up, and while every decoding thread is overdue.
    """
    engine = engine_of(request)
    state = engine.backend.state.find()
    if state is None:
        raise NotReady("the default model is not loaded", retry_after_s=1)
    check_ready(engine, state)
    return {"status": "ready"}


@router.get("/info", summary="Model, devices and limits", response_model=dict[str, Any], responses=problems(503))
async def info(request: Request) -> Response:
    """The default model, or that of `?model=`: fingerprint, preprocessing, devices, the selected scan and why. Also all
    models, limits, image formats, versions.
    """
    engine = engine_of(request)
    state = await find(request, request.query_params.get("model"))
    described(state)
    own = {
        "state": state.phase,
        "models": [_listed(one) for one in engine.backend.state.models],
        "queue": {"images": engine.admission.images},
        "limits": _limits(engine, state),
        "formats": ACCEPTED,
        "version": __version__,
    }
    return JsonResponse(state.to_json() | own)


@router.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse, responses=problems(404))
async def metrics(request: Request) -> Response:
    """Prometheus metrics, in the format that the Accept header selects."""
    engine = engine_of(request)
    if engine.settings.metrics_port is not None:
        raise NotFound("metrics are served on a separate port (VIM_METRICS_PORT)")
    body, content_type = engine.metrics.render(request.headers.get("accept", ""))
    return Response(body, headers={"Content-Type": content_type})


def check_ready(engine: Engine, state: ModelState) -> None:
    """Raise Draining or NotReady if this model cannot be served now."""
    if state.phase == "draining":
        raise Draining(state.reason, retry_after_s=1)
    if state.phase != "ready":
        raise NotReady(state.reason, retry_after_s=1)
    if engine.overdue:
        raise NotReady("every decoding thread has been busy for longer than VIM_REQUEST_TIMEOUT_MS", retry_after_s=1)


def _listed(state: ModelState) -> dict[str, Any]:
    fingerprint = state.model.fingerprint if state.model else None
    return {"name": state.id.name, "version": state.id.version, "state": state.phase, "fingerprint": fingerprint}


def _limits(engine: Engine, state: ModelState) -> dict[str, Any]:
    settings = engine.settings
    return {
        "max_batch": state.max_batch,
        "max_body_bytes": settings.max_body_bytes,
        "max_images": settings.max_images,
        "max_pixels": settings.max_pixels,
        "queue_images": settings.queue_images,
        "queue_bytes": settings.queue_bytes,
        "bulk_percent": settings.bulk_percent,
        "request_timeout_ms": settings.request_timeout_ms,
    }
