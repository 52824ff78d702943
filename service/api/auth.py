"""API-key authentication of all routes except the probes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service import api_keys
from service.api import errors
from service.errors import Unauthorized
from service.settings import Settings, variable

# Orchestrators request these without a key. They reveal only whether the service is alive or ready, and why not.
PROBES = frozenset(
    {"/livez", "/readyz", "/health", "/v2/health/live", "/v2/health/ready", "/.well-known/live", "/.well-known/ready"}
)


def known_keys(settings: Settings) -> tuple[str, ...]:
    """The digests of the keys that the API accepts; empty if it requires none.

    They are those of VIM_API_KEYS and VIM_API_KEYS_FILE. Then the keys of administrators are accepted too; alone they
    do not make the API require a key. Raises SettingsError for a file that cannot be read or holds no key.
    """
    keys = settings.api_keys + _in_file(settings.api_keys_file, "api_keys_file")
    return keys + admin_keys(settings) if keys else ()


def admin_keys(settings: Settings) -> tuple[str, ...]:
    """The digests of the keys in VIM_ADMIN_KEYS and VIM_ADMIN_KEYS_FILE; empty if neither is set.

    Raises SettingsError as `known_keys`.
    """
    return settings.admin_keys + _in_file(settings.admin_keys_file, "admin_keys_file")


def is_admin(scope: Scope, known: Collection[str]) -> bool:
    """Return whether a request has the key of an administrator; `known` are their digests."""
    return has_key(scope, known)


def check_admin(request: Request) -> None:
    """Raise Unauthorized if a request does not have the key of an administrator."""
    if not is_admin(request.scope, request.app.state.admin_keys):
        raise Unauthorized("this path requires a key of VIM_ADMIN_KEYS: Authorization: Bearer KEY, or X-API-Key: KEY")


class Authenticate:
    """ASGI middleware: passes on requests with a known API key and requests to probes; refuses all others."""

    def __init__(self, app: ASGIApp, known: Collection[str]) -> None:
        self._app = app
        self._known = known

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI scope."""
        if scope["type"] == "lifespan" or scope["path"] in PROBES or has_key(scope, self._known):
            await self._app(scope, receive, send)
            return
        if scope["type"] == "websocket":  # the service has no WebSocket routes
            await send({"type": "websocket.close", "code": 1008})
            return
        error = Unauthorized("this server requires an API key: Authorization: Bearer KEY, or X-API-Key: KEY")
        await errors.respond(Request(scope), error)(scope, receive, send)


def keys_in(scope: Mapping[str, Any]) -> Iterator[bytes]:
    """Yield the API keys of a request. A client may send a placeholder, and a proxy the valid key."""
    headers: dict[bytes, bytes] = dict(scope["headers"])
    scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer":
        yield key.strip()
    if b"x-api-key" in headers:
        yield headers[b"x-api-key"].strip()


def has_key(scope: Mapping[str, Any], known: Collection[str]) -> bool:
    """Return whether a key is known. All keys are compared, so that the time does not reveal which one it is."""
    return sum([api_keys.admits(known, key) for key in keys_in(scope)]) > 0


def _in_file(file: Path | None, field: str) -> tuple[str, ...]:
    return () if file is None else api_keys.read(file, variable(field))
