"""OpenAI's embeddings for images: /v1/embeddings, /v1/models, and errors in OpenAI's format.

`service.api.request.image_fields` reads images in every format that OpenAI-compatible clients use (infinity, Jina,
vLLM).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from service.api import dependencies, responses
from service.api.compat.schemas import OPENAI_BODY, OpenAIEmbeddings, OpenAIModel, OpenAIModels, OpenAIProblem, body_of
from service.api.record import labelled
from service.api.request.body import check_count, read_body, validate
from service.api.request.image_fields import from_any, from_message, whole
from service.api.request.json_body import load_object, only_json
from service.api.responses import JsonResponse
from service.api.routing import DirectRoute
from service.api.schemas import INFERENCE, problems
from service.engine.engine import Answer
from service.errors import InvalidOptions, ServiceError, UnsupportedInput
from service.jobs import Given, Task

router = APIRouter(route_class=DirectRoute, tags=["openai"])

_ROOTS = ("/v1/embeddings", "/embeddings", "/v1/models")
_UNNAMED = (None, "", "default/not-specified")  # infinity-client sends the last one
_UNSIZED = (None, 0)  # infinity-client sends 0 by default
_TAKES = only_json('{"input": [base64 or data URI, ...]}')
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}

Encoding = Literal["float", "base64"]


class EmbeddingsRequest(BaseModel):
    """The members of a request that are used; others are ignored. `embedding_type` and `normalized` are Jina's."""

    model: str | None = None
    input: Any = None
    messages: list[dict[str, Any]] | None = None
    modality: str = "image"
    encoding_format: Encoding | None = None
    embedding_type: Encoding | None = None
    encoding_type: Encoding | None = None
    dimensions: int | None = None
    normalized: bool = True

    @property
    def encoding(self) -> Encoding:
        """The encoding, from any of its three members."""
        return self.encoding_format or self.embedding_type or self.encoding_type or "float"


_EXTRA = body_of({"application/json": OPENAI_BODY})
_PROBLEMS = problems(*INFERENCE, model=OpenAIProblem)


@router.post(
    "/v1/embeddings",
    summary="Create embeddings",
    response_model=OpenAIEmbeddings,
    responses=_PROBLEMS,
    openapi_extra=_EXTRA,
)
@router.post(
    "/embeddings",
    summary="Create embeddings",
    response_model=OpenAIEmbeddings,
    responses=_PROBLEMS,
    openapi_extra=_EXTRA,
)
@labelled("openai", "embed")
async def embeddings(request: Request) -> Response:
    """OpenAI's embeddings: `input` is one image or a list: data URIs, base64 or `{"image": ...}`, but no text."""
    engine = dependencies.engine_of(request)
    dependencies.choose_early(request, Task("embed"))
    body = await read_body(request)
    wanted, images = await dependencies.in_thread(request, _parse, body, engine.settings.max_images)
    _check(request, wanted)
    answer = await dependencies.infer(request, images, Task("embed"))
    with engine.metrics.timed("postprocess"):
        return _render(answer, wanted)


@router.get("/v1/models", summary="List models", response_model=OpenAIModels)
async def models(request: Request) -> Response:
    """OpenAI's list of models, the default one first, each followed by its custom heads as NAME~HEAD."""
    names: list[str] = []
    for one in dependencies.engine_of(request).backend.state.models:
        names.append(one.id.name)
        if one.model is not None:
            heads = await dependencies.heads_of(request).of(one.model.fingerprint)
            names += [f"{one.id.name}~{head.name}" for head in heads]
    return JsonResponse({"object": "list", "data": [_model(request, name) for name in names]})


@router.get(
    "/v1/models/{model}",
    summary="Retrieve a model",
    response_model=OpenAIModel,
    responses=problems(404, model=OpenAIProblem),
)
async def one_model(request: Request, model: str) -> Response:
    """A model, by its id."""
    await dependencies.find(request, model)
    return JsonResponse(_model(request, model))


def speaks(path: str) -> bool:
    """Return whether errors of this path have OpenAI's format."""
    return any(path == root or path.startswith(root + "/") for root in _ROOTS)


def problem(error: ServiceError, *, instance: str, request_id: str) -> dict[str, Any]:
    """The body of an error: OpenAI's `error` object, and `detail` for Jina's clients."""
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    body: dict[str, Any] = {
        "error": {"message": error.detail, "type": kind, "param": None, "code": error.code},
        "detail": error.detail,
        "status": error.status,
        "instance": instance,
        "request_id": request_id,
    }
    return body if error.retry_after_s is None else body | {"retry_after_s": error.retry_after_s}


def _parse(body: bytes, max_images: int) -> tuple[EmbeddingsRequest, Sequence[Given]]:
    wanted = validate(EmbeddingsRequest, {}, load_object(body, max_images, _TAKES))
    found = _images(wanted)
    check_count(len(found), max_images)
    return wanted, whole(found)


def _images(wanted: EmbeddingsRequest) -> list[Given]:
    if (wanted.messages is None) == (wanted.input is None):
        raise InvalidOptions("give either input or messages")
    if wanted.messages is not None:
        return [from_message({"content": _contents(wanted.messages)})]
    given = wanted.input if isinstance(wanted.input, list) else [wanted.input]
    return [from_any(item) for item in given]


def _contents(messages: Sequence[dict[str, Any]]) -> list[Any]:
    """All parts of a conversation. It has one embedding, so it may have one image only."""
    contents = [message.get("content") for message in messages]
    return [part for content in contents for part in (content if isinstance(content, list) else [content])]


def _check(request: Request, wanted: EmbeddingsRequest) -> None:
    dependencies.choose(request, Task("embed"), None if wanted.model in _UNNAMED else wanted.model)
    if wanted.modality != "image":
        raise UnsupportedInput(f"modality {wanted.modality[:20]!r} is not supported: this is a vision-only model")
    dim = dependencies.model_of(request).embedding_dim
    if wanted.dimensions not in (*_UNSIZED, dim):
        raise UnsupportedInput(f"embeddings of this model have {dim} dimensions, not {wanted.dimensions}")


def _render(answer: Answer, wanted: EmbeddingsRequest) -> Response:
    rows = responses.rows(answer)
    vectors = [responses.normalised(row) if wanted.normalized else row for row in rows]
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": responses.as_base64(one) if wanted.encoding == "base64" else one,
        }
        for index, one in enumerate(vectors)
    ]
    usage = {"prompt_tokens": len(data), "total_tokens": len(data)}  # images, not tokens; clients expect integers
    content = {"object": "list", "data": data, "model": answer.model.name, "usage": usage}
    return JsonResponse(content, headers=dependencies.model_headers(answer.model))


def _model(request: Request, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": request.app.state.created, "owned_by": "vim-server"}
