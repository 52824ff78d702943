"""/docs and /redoc, served from here: pages and libraries come with the server, nothing from a CDN."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from fastapi import APIRouter
from starlette.responses import FileResponse, HTMLResponse, Response

from service.errors import NotFound

router = APIRouter(include_in_schema=False)

_PACKAGE = importlib.util.find_spec("fastapi_offline")  # only its files are used
_LIBRARIES = Path(str(_PACKAGE.origin)).parent / "static" if _PACKAGE else None
_FILES = {
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "redoc.standalone.js": "text/javascript",
}
# Both libraries write styles into the page, and ReDoc searches in a worker of its own making.
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


@router.get("/docs", response_class=Response)
async def swagger() -> Response:
    """Interactive documentation (Swagger UI), served from here."""
    return HTMLResponse(_SWAGGER, headers={"Content-Security-Policy": _POLICY})


@router.get("/redoc", response_class=Response)
async def redoc() -> Response:
    """The same as one page (ReDoc), served from here."""
    return HTMLResponse(_REDOC, headers={"Content-Security-Policy": _POLICY})


@router.get("/docs/{name}", response_class=Response)
async def library(name: str) -> Response:
    """The libraries of both pages."""
    if name == "start.js":
        return Response(_START, media_type="text/javascript")
    if _LIBRARIES is None or name not in _FILES:
        raise NotFound("no such file")
    return FileResponse(_LIBRARIES / name, media_type=_FILES[name], headers={"Cache-Control": "max-age=86400"})
