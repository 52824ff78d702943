"""Custom heads over HTTP: list, read, write and remove them. Requires a key of an administrator (VIM_ADMIN_KEYS)."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from model.errors import HeadError
from model.heads.head import MOST_BYTES, Head
from service.api.auth import check_admin
from service.api.compat.schemas import FILE
from service.api.dependencies import engine_of, heads_of
from service.api.request.body import read_limited
from service.api.responses import OCTETS, JsonResponse
from service.api.schemas import Responses, problems
from service.engine.admission import BodyAccount
from service.errors import HeadMismatch, InvalidHead, InvalidOptions, NotFound
from service.heads import scoring
from service.heads.store import NAME, NAMES_ARE, Heads, NamedHead
from service.status import ModelInfo
from service.system import blocking

router = APIRouter(prefix="/v1/heads", tags=["native"])

_PROBLEMS = problems(401, 404, 422)
_CONTENT: Responses = {200: {"content": {OCTETS: {"schema": FILE}}, "description": "The file (safetensors)."}}
_BODY = {"requestBody": {"required": True, "content": {OCTETS: {"schema": FILE}}}}


class HeadInfo(BaseModel):
    """A custom head."""

    name: str
    fingerprint: str = Field(description="12 hex digits; they change with the weights and the labels.")
    model: str = Field(description="The fingerprint of the model that the head was taught with.")
    labels: list[str]
    served_by: list[str] = Field(description="Names of the loaded models that the head fits.")
    recipe: dict[str, Any] = Field(description="How the head was taught.")


class HeadList(BaseModel):
    """All custom heads, and why some cannot be used."""

    heads: list[HeadInfo]
    damaged: dict[str, str]


@router.get("", summary="List the custom heads", response_model=HeadList, responses=problems(401, 404))
async def list_heads(request: Request) -> Response:
    """All heads of the server, sorted by name."""
    heads = _allowed(request)
    found: list[dict[str, Any]] = []
    damaged: dict[str, str] = {}
    for name in await blocking.run(heads.names):
        try:
            found.append(_described(request, await heads.get(name)))
        except InvalidHead as error:
            damaged[name] = error.detail
    return JsonResponse({"heads": found, "damaged": damaged})


@router.get("/{name}", summary="Download a custom head", response_class=Response, responses=_PROBLEMS | _CONTENT)
async def get_head(request: Request, name: str) -> Response:
    """The file of a head, as it was sent."""
    return Response(await blocking.run(_allowed(request).content, name), media_type=OCTETS)


@router.put(
    "/{name}",
    summary="Add or replace a custom head",
    response_model=HeadInfo,
    responses=problems(400, 401, 404, 408, 413, 422, 429),
    openapi_extra=_BODY,
)
async def put_head(request: Request, name: str) -> Response:
    """Write the file of a head, as `vim-server teach` makes it. Requests that begin after the answer use it, in every
    HTTP process. A head whose model is not loaded is refused.
    """
    heads = _allowed(request)
    if not NAME.fullmatch(name):
        raise InvalidOptions(f"the name of a head must be {NAMES_ARE}; got {name[:100]!r}")
    engine = engine_of(request)
    account = BodyAccount(engine.admission, "interactive")
    try:
        data = await read_limited(request, MOST_BYTES, account, engine.settings.body_timeout_ms / 1000)
        head = await blocking.run(_parsed, data)
        named = NamedHead(name, head)
        info = _described(request, named)
        if not (models := _models(request, head)):
            raise HeadMismatch(f"the head is for the model with fingerprint {head.model}; no loaded model has it")
        scoring.check(named, models[0])
        await blocking.run(heads.put, name, head, data)
    finally:
        account.close()
    return JsonResponse(info)


@router.delete("/{name}", summary="Remove a custom head", status_code=204, responses=_PROBLEMS)
async def delete_head(request: Request, name: str) -> Response:
    """Remove the file of a head. Requests that have begun are answered."""
    await blocking.run(_allowed(request).delete, name)
    return Response(status_code=204)


def _allowed(request: Request) -> Heads:
    """The heads. Raises NotFound if the server has none or no administrator, Unauthorized without the key of one."""
    heads = heads_of(request)
    if not heads.enabled or not request.app.state.admin_keys:
        raise NotFound("custom heads cannot be managed over HTTP (VIM_HEADS_DIR, VIM_ADMIN_KEYS)")
    check_admin(request)
    return heads


def _parsed(data: bytes) -> Head:
    try:
        return Head.read(data)
    except HeadError as error:
        raise InvalidHead(str(error)) from error


def _described(request: Request, named: NamedHead) -> dict[str, Any]:
    head = named.head
    return {
        "name": named.name,
        "fingerprint": head.fingerprint,
        "model": head.model,
        "labels": head.labels,
        "served_by": [one.name for one in _models(request, head)],
        "recipe": head.recipe,
    }


def _models(request: Request, head: Head) -> list[ModelInfo]:
    """The loaded models with the fingerprint that the head was made for."""
    models = [one.model for one in engine_of(request).backend.state.models if one.model is not None]
    return [one for one in models if one.fingerprint == head.model]
