"""The native API: /v1/classify and /v1/embed."""

from __future__ import annotations

import functools

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.api import responses
from service.api.dependencies import classify_task, in_thread, infer, run
from service.api.record import labelled
from service.api.request.accept import prefers
from service.api.request.body import receive
from service.api.routing import DirectRoute
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

router = APIRouter(prefix="/v1", responses=problems(*INFERENCE), tags=["native"], route_class=DirectRoute)

MOST_SCORES = 1000  # of custom heads that are computed on the event loop, which takes 3 ms
_CLASSIFY, _EMBED = Task("classify"), Task("embed")
_RAW = {
    responses.OCTETS: {"schema": {"type": "string", "format": "binary"}, "description": "float32, with X-Shape: N,D"}
}


@router.post(
    "/classify", summary="Classify images", response_model=ClassifyResponse, openapi_extra=operation(ClassifyOptions)
)
@labelled("native", "classify")
async def classify(request: Request) -> Response:
    """The most likely classes of each image, best first."""
    images, options = await receive(request, _CLASSIFY, ClassifyOptions)
    task, heads = await classify_task(request, Task("classify", crop=options.crop), options)
    answer = await run(request, images, task)
    metrics = request.app.state.engine.metrics
    respond = functools.partial(responses.classifications, answer, heads, options, metrics)
    with metrics.timed("postprocess"):
        scores = len(images) * sum(len(one.head.labels) for one in heads)
        return await in_thread(request, respond) if scores > MOST_SCORES else respond()


@router.post(
    "/embed",
    summary="Embed images",
    response_model=EmbedResponse,
    openapi_extra=operation(EmbedOptions),
    responses={200: {"content": _RAW}},
)
@labelled("native", "embed")
async def embed(request: Request) -> Response:
    """The embedding of each image, as JSON or, with `Accept: application/octet-stream`, as raw float32."""
    images, options = await receive(request, _EMBED, EmbedOptions)
    answer = await infer(request, images, Task("embed", options.pooling, crop=options.crop))
    metrics = request.app.state.engine.metrics
    with metrics.timed("postprocess"):
        if prefers(request.headers.get("accept", ""), responses.OCTETS, responses.JsonResponse.media_type):
            return responses.raw_embeddings(answer, options)
        return responses.embeddings(answer, options, metrics)
