"""The service's own contract: /v1/classify and /v1/embed."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.api import responses
from service.api.dependencies import engine_of, in_thread, infer, model_of, read_body
from service.api.request import body as request_body
from service.api.request.body import Inputs
from service.api.schemas import (
    INFERENCE,
    ClassifyOptions,
    ClassifyResponse,
    EmbedOptions,
    EmbedResponse,
    operation,
    problems,
)
from service.jobs import Task

router = APIRouter(prefix="/v1", responses=problems(*INFERENCE), tags=["native"])

_RAW = {
    responses.OCTETS: {"schema": {"type": "string", "format": "binary"}, "description": "float32, with X-Shape: N,D"}
}


@router.post("/classify", response_model=ClassifyResponse, openapi_extra=operation(ClassifyOptions))
async def classify(request: Request) -> Response:
    """The most likely classes of each image, best first."""
    engine = engine_of(request)
    engine.check(Task("classify"))
    found = await _read(request)
    options = request_body.validate(ClassifyOptions, request.query_params, found.fields)
    answer = await infer(request, found.images, Task("classify"))
    with engine.metrics.timed("postprocess"):
        labels = engine.loaded.labels
        results = [responses.classification(i, one, options.top_k, labels) for i, one in enumerate(answer.outcomes)]
        return responses.respond(answer, model_of(request), results)


@router.post(
    "/embed",
    response_model=EmbedResponse,
    openapi_extra=operation(EmbedOptions),
    responses={200: {"content": _RAW}},
)
async def embed(request: Request) -> Response:
    """The embedding of each image, as JSON or, with `Accept: application/octet-stream`, as raw float32."""
    engine = engine_of(request)
    engine.check(Task("embed"))
    found = await _read(request)
    options = request_body.validate(EmbedOptions, request.query_params, found.fields)
    answer = await infer(request, found.images, Task("embed", options.pooling))
    with engine.metrics.timed("postprocess"):
        if responses.OCTETS in request.headers.get("accept", ""):
            return responses.raw_embeddings(answer, options.normalize, model_of(request))
        results = [responses.embedding(i, one, options) for i, one in enumerate(answer.outcomes)]
        return responses.respond(answer, model_of(request), results)


async def _read(request: Request) -> Inputs:
    engine, body = engine_of(request), await read_body(request)
    content_type = request.headers.get("content-type", "")
    if not request_body.needs_parsing(body, content_type):
        return Inputs([body], {})
    return await in_thread(request, request_body.parse, body, content_type, engine.settings.max_images)
