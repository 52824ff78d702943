"""Responds with a file of the service itself: conditional requests (304), and gzip for texts.

The files are few and small; each is read and compressed once.
"""

from __future__ import annotations

import asyncio
import functools
import gzip
import hashlib
import mimetypes
from dataclasses import dataclass
from pathlib import Path

from fastapi import Request
from starlette.responses import Response

_TEXTS = ("text/", "application/javascript", "application/json", "image/svg+xml")


@dataclass(frozen=True, slots=True)
class _Loaded:
    """The content of a file in both forms; `packed` is None where compression would save nothing."""

    content: bytes
    packed: bytes | None
    digest: str


async def respond(
    request: Request,
    path: Path,
    media_type: str | None = None,
    headers: dict[str, str] | None = None,
    replace: tuple[bytes, bytes] = (b"", b""),
) -> Response:
    """The response for a file that exists. Browsers ask again each time, unless `headers` has a Cache-Control.

    `replace` is a text in the file, and what is sent instead of it.
    """
    kind = media_type or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    loaded = await asyncio.to_thread(_load, path, kind.startswith(_TEXTS), replace)
    packed = loaded.packed if _takes_gzip(request) else None
    tag = f'"{loaded.digest}"' if packed is None else f'"{loaded.digest}-gzip"'  # the two forms need different tags
    own = {"Cache-Control": "no-cache", "ETag": tag} | (headers or {})
    if loaded.packed is not None:
        own["Vary"] = ", ".join(filter(None, [own.get("Vary"), "Accept-Encoding"]))
    if _knows(request, tag):
        return Response(status_code=304, headers=own)
    if packed is not None:
        own["Content-Encoding"] = "gzip"
    return Response(loaded.content if packed is None else packed, media_type=kind, headers=own)


def _load(path: Path, is_text: bool, replace: tuple[bytes, bytes]) -> _Loaded:
    return _load_version(path, path.stat().st_mtime_ns, is_text, replace)


@functools.lru_cache(maxsize=64)
def _load_version(path: Path, _changed_ns: int, is_text: bool, replace: tuple[bytes, bytes]) -> _Loaded:
    """Read and compress a file; once for each version of it."""
    content = path.read_bytes().replace(*replace) if replace[0] else path.read_bytes()
    packed = gzip.compress(content, mtime=0) if is_text else None
    return _Loaded(content, packed, hashlib.sha256(content).hexdigest()[:32])


def _takes_gzip(request: Request) -> bool:
    for part in request.headers.get("accept-encoding", "").lower().split(","):
        coding, _, quality = part.partition(";")
        if coding.strip() in ("gzip", "x-gzip", "*"):
            return quality.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


def _knows(request: Request, tag: str) -> bool:
    """Return whether If-None-Match has this tag. The comparison is weak (RFC 9110, 13.1.2): proxies may weaken tags."""
    tags = [one.strip().removeprefix("W/") for one in request.headers.get("if-none-match", "").split(",")]
    return tag in tags or "*" in tags
