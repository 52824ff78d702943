"""The service's own contract: /v1/classify and /v1/embed."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from service import inputs, outputs
from service.api.call import engine_of, in_thread, infer, model_of, read_body
from service.inputs import Inputs
from service.jobs import Task
from service.schemas import (
    INFERENCE,
    ClassifyOptions,
    ClassifyResponse,
    EmbedOptions,
    EmbedResponse,
    operation,
    problems,
)

router = APIRouter(prefix="/v1", responses=problems(*INFERENCE), tags=["native"])

_RAW = {outputs.OCTETS: {"schema": {"type": "string", "format": "binary"}, "description": "float32, with X-Shape: N,D"}}


@router.post("/classify", response_model=ClassifyResponse, openapi_extra=operation(ClassifyOptions))
async def classify(request: Request) -> Response:
    """The most likely classes of each image, best first."""
    engine = engine_of(request)
    engine.check(Task("classify"))
    found = await _read(request)
    options = inputs.validate(ClassifyOptions, request.query_params, found.fields)
    answer = await infer(request, found.images, Task("classify"))
    with engine.metrics.timed("postprocess"):
        labels = engine.loaded.labels
        results = [outputs.classification(i, one, options.top_k, labels) for i, one in enumerate(answer.outcomes)]
        return outputs.respond(answer, model_of(request), results)


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
    options = inputs.validate(EmbedOptions, request.query_params, found.fields)
    answer = await infer(request, found.images, Task("embed", options.pooling))
    with engine.metrics.timed("postprocess"):
        if outputs.OCTETS in request.headers.get("accept", ""):
            return outputs.raw_embeddings(answer, options.normalize, model_of(request))
        results = [outputs.embedding(i, one, options) for i, one in enumerate(answer.outcomes)]
        return outputs.respond(answer, model_of(request), results)


async def _read(request: Request) -> Inputs:
    engine, body = engine_of(request), await read_body(request)
    content_type = request.headers.get("content-type", "")
    if not inputs.needs_parsing(body, content_type):
        return Inputs([body], {})
    return await in_thread(request, inputs.parse, body, content_type, engine.settings.max_images)
