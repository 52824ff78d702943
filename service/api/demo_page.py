"""Serves the demo page, its files and the sample images; clients other than browsers get a JSON index from `/`."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from model.shipped import shipped
from service import __version__
from service.api import static_file
from service.api.compat.schemas import FILE
from service.api.dependencies import engine_of
from service.api.request.accept import prefers
from service.api.responses import JsonResponse
from service.api.schemas import problems
from service.errors import NotFound

PAGE = Path(__file__).resolve().parent / "page"
SAMPLES = shipped("samples")

router = APIRouter(tags=["page"])

_FILES: dict[str, Any] = {
    "response_class": Response,
    "responses": problems(404) | {200: {"content": {"*/*": {"schema": FILE}}, "description": "The file."}},
}

_POLICY = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
_VARY = {"Vary": "Accept"}
_INDEX = {
    "service": "Vision Mamba server",
    "classify": "/v1/classify",
    "embed": "/v1/embed",
    "info": "/info",
    "ready": "/readyz",
    "metrics": "/metrics",
    "openapi": "/openapi.json",
}


@router.get(
    "/",
    summary="Demo page or index",
    response_model=dict[str, str],
    responses={200: {"content": {"text/html": {"schema": {"type": "string"}}}}},
)
async def index(request: Request) -> Response:
    """The demo page for browsers (`VIM_PAGE`); for other clients a JSON index of the paths."""
    engine = engine_of(request)
    if engine.settings.page and prefers(request.headers.get("accept", ""), "text/html", JsonResponse.media_type):
        return await _file(request, PAGE, "index.html", _VARY | {"Content-Security-Policy": _POLICY})
    return JsonResponse(_INDEX | {"version": __version__, "model": engine.backend.state.default}, headers=_VARY)


@router.get("/page/{name}", summary="File of the demo page", **_FILES)
async def page_file(request: Request, name: str) -> Response:
    """A file of the demo page: script, styles or icon."""
    _check_on(request)
    return await _file(request, PAGE, name)


@router.get("/samples", summary="List the sample images", responses=problems(404))
async def samples(request: Request) -> list[dict[str, Any]]:
    """The list of sample images: file, expected label, source and licence."""
    _check_on(request)
    manifest = SAMPLES / "manifest.json"
    return json.loads(manifest.read_text(encoding="utf-8")) if manifest.is_file() else []


@router.get("/samples/{name}", summary="Sample image", **_FILES)
async def sample(request: Request, name: str) -> Response:
    """One sample image."""
    _check_on(request)
    return await _file(request, SAMPLES, name)


def _check_on(request: Request) -> None:
    if not engine_of(request).settings.page:
        raise NotFound("the demo page is switched off (VIM_PAGE)")


async def _file(request: Request, folder: Path, name: str, headers: dict[str, str] | None = None) -> Response:
    """Respond with a file of `folder`."""
    found = await asyncio.to_thread(_find, folder, name)
    if found is None:
        raise NotFound(f"no such file: {name[:100]}")
    return await static_file.respond(request, found, headers=headers)


def _find(folder: Path, name: str) -> Path | None:
    """Look the name up in a listing, so that it cannot leave the folder."""
    return {path.name: path for path in folder.glob("*.*")}.get(name)
