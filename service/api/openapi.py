"""Corrects the OpenAPI document and serves /docs and /redoc; their scripts come from this server, not from a CDN."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response

from service.api import static_file
from service.api.compat import openai
from service.errors import NotFound

router = APIRouter(include_in_schema=False)

INTRODUCTION = """
Classifies and embeds images with a Vision Mamba model.

    curl --data-binary @photo.jpg http://127.0.0.1:8000/v1/classify

`/v1/classify`, `/v1/embed` and `/v1/bulk` are the native API. The same model is also served in the formats of OpenAI,
the Open Inference Protocol (KServe, Triton), Hugging Face and Weaviate.

An error is a problem document (RFC 9457) with a `code`, except where a format defines its own. Every response has an
`X-Request-ID`. On 429 and 503 the `Retry-After` header says when to send the request again.
"""
TAGS = [
    {"name": "native", "description": "Classify and embed one image, several images, or a stream."},
    {"name": "openai", "description": "Embeddings for OpenAI clients."},
    {"name": "open inference protocol", "description": "Version 2, for the clients of KServe and Triton."},
    {"name": "hugging face", "description": "Image classification for `huggingface_hub` and `@huggingface/inference`."},
    {"name": "weaviate", "description": "The modules multi2vec-clip and img2vec-neural."},
    {"name": "operations", "description": "Probes, metrics, and information about the served model."},
    {"name": "page", "description": "The demo page and its sample images."},
]

_PACKAGE = importlib.util.find_spec("fastapi_offline")  # used for its files only
_LIBRARIES = Path(str(_PACKAGE.origin)).parent / "static" if _PACKAGE else None
_FILES = {
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "redoc.standalone.js": "text/javascript",
}
# Both libraries add inline styles, and ReDoc runs its search in a worker from a blob.
_POLICY = (
    "default-src 'none'; connect-src 'self'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:; worker-src blob:; base-uri 'none'; frame-ancestors 'none'"
)
_START = 'SwaggerUIBundle({url: "openapi.json", dom_id: "#page", deepLinking: true})'
_HEAD = '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Vision Mamba server</title>'
_SWAGGER = f"""{_HEAD}<link rel="stylesheet" href="docs/swagger-ui.css"></head>
<body><div id="page"></div><script src="docs/swagger-ui-bundle.js"></script><script src="docs/start.js"></script>
</body></html>"""
_REDOC = f"""{_HEAD}</head>
<body><redoc spec-url="openapi.json"></redoc><script src="docs/redoc.standalone.js"></script></body></html>"""


_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


def corrected(document: dict[str, Any], probes: Collection[str], *, with_keys: bool) -> dict[str, Any]:
    """Remove the answers that FastAPI adds but that never occur; add the API keys if there are any."""
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
    for path, operation in _operations(document):
        _drop_validation_error(operation["responses"])
        if with_keys and path not in probes:
            _require_key(operation, "OpenAIProblem" if openai.speaks(path) else "Problem")
    if with_keys:
        document["components"]["securitySchemes"] = _SCHEMES
    return document


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        yield from ((path, operation) for operation in methods.values())


def _drop_validation_error(responses: dict[str, Any]) -> None:
    """Remove FastAPI's own 422. It is for wrong path parameters, but every string is a valid one."""
    if "HTTPValidationError" in str(responses.get("422")):
        del responses["422"]


def _require_key(operation: dict[str, Any], body: str) -> None:
    schema = {"$ref": f"#/components/schemas/{body}"}
    operation["security"] = [{name: []} for name in _SCHEMES]
    operation["responses"]["401"] = {
        "description": "The API key is missing or unknown.",
        "content": {"application/json": {"schema": schema}},
    }


@router.get("/docs", response_class=Response)
async def swagger() -> Response:
    """The interactive documentation (Swagger UI)."""
    return HTMLResponse(_SWAGGER, headers={"Content-Security-Policy": _POLICY})


@router.get("/redoc", response_class=Response)
async def redoc() -> Response:
    """The documentation as one page (ReDoc)."""
    return HTMLResponse(_REDOC, headers={"Content-Security-Policy": _POLICY})


@router.get("/docs/{name}", response_class=Response)
async def library(request: Request, name: str) -> Response:
    """A script or style sheet of these two pages."""
    if name == "start.js":
        return Response(_START, media_type="text/javascript")
    if _LIBRARIES is None or name not in _FILES:
        raise NotFound("no such file")
    return await static_file.respond(request, _LIBRARIES / name, _FILES[name], {"Cache-Control": "max-age=86400"})
