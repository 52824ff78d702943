"""The repository extension of the Open Inference Protocol: list, load and unload models while the server runs.

VIM_MODEL_CONTROL=explicit turns it on. Every request needs a key of an administrator (VIM_ADMIN_KEYS).
"""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.api.auth import check_admin
from service.api.dependencies import engine_of
from service.api.request.body import read_limited
from service.api.responses import JsonResponse
from service.api.schemas import problems
from service.engine.admission import BodyAccount
from service.engine.engine import Engine
from service.errors import EmptyBody, MalformedBody, NotFound, UnsupportedInput

router = APIRouter(prefix="/v2/repository", tags=["open inference protocol"])

MOST_BYTES = 1 << 20  # of a body
_PROBLEMS = problems(400, 401, 404, 503)
_TAKES = 'the body must be JSON: {"parameters": {...}}'


@router.post("/index", summary="List models and versions", response_model=list[dict[str, str]], responses=_PROBLEMS)
async def index(request: Request) -> Response:
    """All known versions of all models, with their state and why one does not serve. `{"ready": true}` lists only those
    that serve. States are `READY`, `LOADING`, `UNLOADING` and `UNAVAILABLE`.
    """
    engine = _allowed(request)
    only_ready = (await _content(request, engine)).get("ready") is True
    entries = [one for one in await engine.backend.index() if one.state == "READY" or not only_ready]
    return JsonResponse(entries)


@router.post("/models/{model}/load", summary="Load or reload a model", response_class=Response, responses=_PROBLEMS)
async def load(request: Request, model: str) -> Response:
    """Load the newest version, or the one that `config` names in Triton's `version_policy`; answers when it serves.

    The version that serves now continues until then, and remains if the new one cannot be served.
    """
    engine = _allowed(request)
    version = _version(_parameters(await _content(request, engine)))
    await engine.backend.load(model, version)
    return JsonResponse({})


@router.post("/models/{model}/unload", summary="Unload a model", response_class=Response, responses=_PROBLEMS)
async def unload(request: Request, model: str) -> Response:
    """Stop serving a model. Its running requests are answered."""
    engine = _allowed(request)
    await _content(request, engine)
    await engine.backend.unload(model)
    return JsonResponse({})


def _allowed(request: Request) -> Engine:
    """The engine. Raises NotFound if models cannot be controlled, Unauthorized without a key of an administrator."""
    engine = engine_of(request)
    if engine.settings.model_control != "explicit":
        raise NotFound("models cannot be loaded over HTTP (VIM_MODEL_CONTROL)")
    check_admin(request)
    return engine


async def _content(request: Request, engine: Engine) -> dict[str, Any]:
    """The body, a JSON object; an empty body counts as an empty object."""
    account = BodyAccount(engine.admission, "interactive")
    try:
        body = await read_limited(request, MOST_BYTES, account, engine.settings.body_timeout_ms / 1000)
        content = json.loads(body)
    except EmptyBody:
        return {}
    except (ValueError, RecursionError) as error:
        raise MalformedBody(_TAKES) from error
    finally:
        account.close()
    if not isinstance(content, dict):
        raise MalformedBody(_TAKES)
    return content


def _parameters(content: dict[str, Any]) -> dict[str, Any]:
    parameters = content.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise MalformedBody(_TAKES)
    if unknown := sorted(parameters.keys() - {"config"}):
        raise UnsupportedInput(f"{unknown[0][:100]!r} is not supported; models are read from their folders")
    return parameters


def _version(parameters: dict[str, Any]) -> str | None:
    """The version in Triton's model configuration: {"version_policy": {"specific": {"versions": [1]}}}."""
    text = parameters.get("config")
    if text is None:
        return None
    try:
        config = json.loads(text)
        policy = config.get("version_policy") or config.get("versionPolicy") or {"latest": {}}
        if "latest" in policy:
            return None
        (version,) = policy["specific"]["versions"]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        wanted = '{"version_policy": {"specific": {"versions": [1]}}}'
        raise UnsupportedInput(f"config may only select one version, as JSON: {wanted}") from error
    return str(version)
