"""Serves the demo page, its files and the sample images; clients other than browsers get a JSON index from `/`.

The files of the page have a digest of all of them in their path, so browsers can keep them for a year.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
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
SAMPLES = shipped("photos")

router = APIRouter(tags=["page"])

_FILES: dict[str, Any] = {
    "response_class": Response,
    "responses": problems(404) | {200: {"content": {"*/*": {"schema": FILE}}, "description": "The file."}},
}

POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
)
# Without `public`: where the server asks for keys, proxies must not keep what they protect.
_FOR_A_YEAR = {"Cache-Control": "max-age=31536000, immutable"}
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
        headers = _VARY | {"Content-Security-Policy": POLICY}
        return await _file(request, PAGE, "index.html", headers, (b'="page/', b'="page/%s/' % digest().encode()))
    return JsonResponse(_INDEX | {"version": __version__, "model": engine.backend.state.default}, headers=_VARY)


@router.get("/page/{version}/{name}", summary="File of the demo page", **_FILES)
async def page_file(request: Request, version: str, name: str) -> Response:
    """A file of the demo page: script, styles or icon. The version is a digest of all files of the page."""
    _check_on(request)
    # Another version's page may ask while servers are replaced one by one; it gets the file, but must not keep it.
    return await _file(request, PAGE, name, _FOR_A_YEAR if version == digest() else None)


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


@functools.cache
def digest() -> str:
    """A digest of all files of the page."""
    found = hashlib.sha256()
    for path in sorted(PAGE.iterdir()):
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()[:16]


async def _file(
    request: Request,
    folder: Path,
    name: str,
    headers: dict[str, str] | None = None,
    replace: tuple[bytes, bytes] = (b"", b""),
) -> Response:
    """Respond with a file of `folder`."""
    found = await asyncio.to_thread(_find, folder, name)
    if found is None:
        raise NotFound(f"no such file: {name[:100]}")
    return await static_file.respond(request, found, headers=headers, replace=replace)


def _find(folder: Path, name: str) -> Path | None:
    """Look the name up in a listing, so that it cannot leave the folder."""
    return {path.name: path for path in folder.glob("*.*")}.get(name)
