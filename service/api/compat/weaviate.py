"""Weaviate's API for vectorizer containers: /vectorize (multi2vec-clip) and /vectors (img2vec-neural).

Weaviate's img2vec-neural sends no Content-Type, so bodies are always read as JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from starlette.responses import Response

from service import __version__
from service.api import dependencies, health, responses
from service.api.compat.schemas import VECTOR_BODY, VECTORS_BODY, WeaviateMeta, WeaviateVector, WeaviateVectors, body_of
from service.api.record import labelled
from service.api.request.body import check_count, read_body
from service.api.request.image_fields import from_text, whole
from service.api.request.json_body import load_object, only_json
from service.api.responses import JsonResponse
from service.api.routing import DirectRoute
from service.api.schemas import INFERENCE, problems
from service.errors import MalformedBody, UnsupportedInput
from service.jobs import Given, Task

router = APIRouter(route_class=DirectRoute, tags=["weaviate"])

_JSON = "application/json"
_PROBLEMS = problems(*INFERENCE)


@router.post(
    "/vectorize",
    summary="Embed images for multi2vec-clip",
    response_model=WeaviateVectors,
    responses=_PROBLEMS,
    openapi_extra=body_of({_JSON: VECTORS_BODY}),
)
@labelled("weaviate", "embed")
async def vectorize(request: Request) -> Response:
    """Weaviate's multi2vec-clip: `imageVectors` of base64 `images`. `texts` are refused: there is no text encoder."""
    content = await _content(request, '{"images": [base64, ...]}')
    if content.get("texts"):
        raise UnsupportedInput("texts are not supported: this is a vision-only model; configure imageFields only")
    images = content.get("images") or []
    if not isinstance(images, list):
        raise MalformedBody('"images" must be a list of base64 strings')
    vectors, headers = await _vectors(request, images)
    return JsonResponse({"textVectors": [], "imageVectors": vectors}, headers=headers)


@router.post(
    "/vectors",
    summary="Embed an image for img2vec-neural",
    response_model=WeaviateVector,
    responses=_PROBLEMS,
    openapi_extra=body_of({_JSON: VECTOR_BODY}),
)
@router.post("/vectors/", response_class=Response, include_in_schema=False)
@labelled("weaviate", "embed")
async def vectors(request: Request) -> Response:
    """Weaviate's img2vec-neural: the `vector` of one base64 `image`."""
    content = await _content(request, '{"id": text, "image": base64}')
    (vector,), headers = await _vectors(request, [content.get("image")])
    body = {"id": content.get("id"), "vector": vector, "dim": len(vector)}
    return JsonResponse(body, headers=headers)


@router.get("/meta", summary="Metadata of the module", response_model=WeaviateMeta, responses=problems(503))
async def meta(request: Request) -> Response:
    """The metadata that Weaviate shows for its module: the model, its fingerprint and dimension."""
    model = dependencies.model_of(request)
    known = {"name": model.name, "fingerprint": model.fingerprint, "embedding_dim": model.embedding_dim}
    return JsonResponse({"service": "vim-server", "version": __version__, "model": known})


@router.get("/.well-known/live", summary="Liveness", status_code=204, response_class=Response, responses=problems(503))
async def live(request: Request) -> Response:
    """Liveness, as `/livez`, but with status 204."""
    await health.livez(request)
    return Response(status_code=204)


@router.get(
    "/.well-known/ready", summary="Readiness", status_code=204, response_class=Response, responses=problems(503)
)
async def ready(request: Request) -> Response:
    """Readiness, as `/readyz`, but with status 204."""
    await health.readyz(request)
    return Response(status_code=204)


async def _content(request: Request, example: str) -> dict[str, Any]:
    engine = dependencies.engine_of(request)
    dependencies.choose(request, Task("embed"))
    body = await read_body(request)
    return await dependencies.in_thread(request, load_object, body, engine.settings.max_images, only_json(example))


async def _vectors(request: Request, texts: Sequence[Any]) -> tuple[list[np.ndarray], dict[str, str]]:
    """Return the vectors of base64 images, and the headers that identify the model."""
    engine = dependencies.engine_of(request)
    check_count(len(texts), engine.settings.max_images)
    images = await dependencies.in_thread(request, _images, texts)
    answer = await dependencies.infer(request, images, Task("embed"))
    with engine.metrics.timed("postprocess"):
        vectors = [responses.normalised(row) for row in responses.rows(answer)]
        return vectors, dependencies.model_headers(answer.model)


def _images(texts: Sequence[Any]) -> Sequence[Given]:
    return whole([from_text(text) for text in texts])
