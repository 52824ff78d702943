"""The service's own contract: /v1/classify and /v1/embed."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from service import inputs, outputs
from service.engine import Answer, Engine
from service.inputs import Inputs, Item
from service.jobs import Task
from service.schemas import PROBLEMS, ClassifyOptions, ClassifyResponse, EmbedOptions, EmbedResponse, operation

router = APIRouter(prefix="/v1", responses=PROBLEMS, tags=["native"])

_RAW = {outputs.OCTETS: {"schema": {"type": "string", "format": "binary"}, "description": "float32, with X-Shape: N,D"}}


@router.post("/classify", response_model=ClassifyResponse, openapi_extra=operation(ClassifyOptions))
async def classify(request: Request) -> Response:
    """The most likely classes of each image, best first."""
    engine: Engine = request.app.state.engine
    engine.check(Task("classify"))
    found = await _read(request, engine)
    options = inputs.validate(ClassifyOptions, request.query_params, found.fields)
    answer = await _infer(request, engine, found.images, Task("classify"))
    with engine.metrics.timed("postprocess"):
        labels = engine.loaded.labels
        results = [outputs.classification(i, one, options.top_k, labels) for i, one in enumerate(answer.outcomes)]
        return outputs.respond(answer, _model(engine), results)


@router.post(
    "/embed",
    response_model=EmbedResponse,
    openapi_extra=operation(EmbedOptions),
    responses={200: {"content": _RAW}},
)
async def embed(request: Request) -> Response:
    """The embedding of each image, as JSON or, with `Accept: application/octet-stream`, as raw float32."""
    engine: Engine = request.app.state.engine
    engine.check(Task("embed"))
    found = await _read(request, engine)
    options = inputs.validate(EmbedOptions, request.query_params, found.fields)
    answer = await _infer(request, engine, found.images, Task("embed", options.pooling))
    with engine.metrics.timed("postprocess"):
        if outputs.OCTETS in request.headers.get("accept", ""):
            return outputs.raw_embeddings(answer, options.normalize, _model(engine))
        results = [outputs.embedding(i, one, options) for i, one in enumerate(answer.outcomes)]
        return outputs.respond(answer, _model(engine), results)


async def _read(request: Request, engine: Engine) -> Inputs:
    body = await inputs.read_body(request, engine.settings.max_body_bytes)
    request.state.bytes = len(body)
    content_type = request.headers.get("content-type", "")
    if not inputs.needs_parsing(body, content_type):
        return Inputs([body], {})
    return await engine.in_thread(inputs.parse, body, content_type, engine.settings.max_images)


async def _infer(request: Request, engine: Engine, images: list[Item], task: Task) -> Answer:
    timeout_s = inputs.timeout_s(request, engine.settings.request_timeout_ms)
    deadline = request.state.started + timeout_s
    answer = await inputs.unless_gone(request, engine.infer(images, task, deadline))
    request.state.timings = answer.timings
    request.state.images = len(images)
    request.state.failed_images = answer.failed
    return answer


def _model(engine: Engine) -> dict[str, Any]:
    model: dict[str, Any] = engine.loaded.info["model"]
    return model
