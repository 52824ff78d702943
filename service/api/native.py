"""The service's own contract: /v1/classify and /v1/embed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from service import inputs, outputs
from service.api.schemas import (
    IMAGE_BODY,
    PROBLEMS,
    ClassifyOptions,
    ClassifyResponse,
    EmbedOptions,
    EmbedResponse,
)
from service.engine import Engine, Outcome
from service.jobs import Task

router = APIRouter(prefix="/v1", responses=PROBLEMS, tags=["native"])


@router.post("/classify", response_model=ClassifyResponse, openapi_extra=IMAGE_BODY)
async def classify(request: Request, options: Annotated[ClassifyOptions, Query()]) -> Response:
    """The most likely classes of an image, best first."""
    engine: Engine = request.app.state.engine

    def item(index: int, outcome: Outcome) -> dict[str, Any]:
        return outputs.classification(index, outcome, options.top_k, engine.loaded.labels)

    return await _respond(request, engine, Task("classify"), item)


@router.post("/embed", response_model=EmbedResponse, openapi_extra=IMAGE_BODY)
async def embed(request: Request, options: Annotated[EmbedOptions, Query()]) -> Response:
    """The embedding of an image."""
    engine: Engine = request.app.state.engine

    def item(index: int, outcome: Outcome) -> dict[str, Any]:
        return outputs.embedding(index, outcome, options.pooling, options.normalize)

    return await _respond(request, engine, Task("embed", options.pooling), item)


async def _respond(
    request: Request, engine: Engine, task: Task, item: Callable[[int, Outcome], dict[str, Any]]
) -> Response:
    images = await inputs.read_images(request, engine.settings.max_body_bytes)
    answer = await engine.infer(images, task)
    request.state.timings = answer.timings
    with engine.metrics.timed("postprocess"):
        results = [item(index, outcome) for index, outcome in enumerate(answer.outcomes)]
        return outputs.respond(answer, engine.info["model"], results)
