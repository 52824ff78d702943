"""Hugging Face's image classification: `POST /` and `/predict`, for huggingface_hub and @huggingface/inference.

The body is the image itself, usually without a Content-Type. A request with parameters is JSON with base64. The
JavaScript client does not send parameters in the body, so the query is accepted as well.
"""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from service.api import dependencies, responses
from service.api.compat.schemas import FILE, HUGGINGFACE_BODY, Scored, body_of
from service.api.record import labelled, record_of
from service.api.request.body import Inputs, check_count, needs_parsing, parse, read_body, validate
from service.api.request.image_fields import from_text, whole
from service.api.request.json_body import load_object
from service.api.responses import OCTETS, JsonResponse
from service.api.routing import DirectRoute
from service.api.schemas import INFERENCE, TopK, problems, query
from service.errors import MalformedBody, UnsupportedInput
from service.jobs import Task

router = APIRouter(responses=problems(*INFERENCE), tags=["hugging face"], route_class=DirectRoute)


class Parameters(BaseModel):
    """Parameters of image classification."""

    model_config = ConfigDict(extra="forbid")

    top_k: TopK | None = Field(None, description="How many classes to return; 5 by default.")
    function_to_apply: Literal["softmax", "sigmoid", "none"] | None = Field(
        None,
        description="Must be the function of the model: `softmax`, or `sigmoid` for a multi-label model.",
        json_schema_extra={"anyOf": [{"const": "softmax"}, {"type": "null"}]},
    )


_BODY = {"image/*": FILE, OCTETS: FILE, "application/json": HUGGINGFACE_BODY}
_EXTRA = body_of(_BODY, query(Parameters))
TOP_K = 5
Answer = list[Scored] | list[list[Scored]]


@router.post("/", summary="Classify an image", response_model=Answer, openapi_extra=_EXTRA)
@router.post("/predict", summary="Classify an image", response_model=Answer, openapi_extra=_EXTRA)
@labelled("huggingface", "classify")
async def predict(request: Request) -> Response:
    """Hugging Face's image classification of a bare image or `{"inputs": base64}`: `[{"label", "score"}, ...]`."""
    return await _predict(request)


@router.post("/models/{model}", summary="Classify an image", response_model=Answer, openapi_extra=_EXTRA)
@labelled("huggingface", "classify")
async def predict_by(request: Request, model: str) -> Response:
    """The same with a model by name, for a client with the URL of this path as its model."""
    return await _predict(request, model)


async def _predict(request: Request, name: str | None = None) -> Response:
    engine = dependencies.engine_of(request)
    dependencies.choose(request, Task("classify"), name)
    body = await read_body(request)
    content_type = request.headers.get("content-type", "")
    found, many = await dependencies.in_thread(request, _parse, body, content_type, engine.settings.max_images)
    wanted = validate(Parameters, request.query_params, found.fields)
    scores = "softmax" if record_of(request.scope).heads else dependencies.model_of(request).scores
    if wanted.function_to_apply not in (None, scores):
        raise UnsupportedInput(f"function_to_apply {wanted.function_to_apply!r} is not supported; scores are {scores}")
    answer = await dependencies.infer(request, whole(found.images), Task("classify"))
    with engine.metrics.timed("postprocess"):
        labels = answer.model.labels
        lists = [responses.top_k(row, wanted.top_k or TOP_K, labels) for row in responses.rows(answer)]
        flat = [[{"label": one["label"], "score": one["score"]} for one in best] for best in lists]
        return JsonResponse(flat if many else flat[0], headers=dependencies.model_headers(answer.model))


def _parse(body: bytes, content_type: str, max_images: int) -> tuple[Inputs, bool]:
    """Return the images with their parameters, and whether the answer has a list for each image."""
    if not needs_parsing(body, content_type):
        return Inputs([body], {}), False
    if content_type.strip().lower().startswith("multipart/"):
        found = parse(body, content_type, max_images)
        return found, len(found.images) > 1
    content = load_object(body, max_images, 'send image bytes, multipart/form-data, or {"inputs": base64}')
    images, parameters = content.get("inputs"), content.get("parameters") or {}
    if not isinstance(images, str | list) or not isinstance(parameters, dict):
        raise MalformedBody('the JSON body must be {"inputs": base64, "parameters": {...}}')
    texts: list[Any] = images if isinstance(images, list) else [images]
    check_count(len(texts), max_images)
    return Inputs([from_text(text) for text in texts], parameters), isinstance(images, list)
