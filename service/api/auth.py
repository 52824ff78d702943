"""Who may ask: the gate in front of every route but the probes. Knows no web framework."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, MutableMapping
from pathlib import Path
from typing import Any

from service import api_keys
from service.errors import ServiceError, SettingsError, Unauthorized
from service.settings import Settings, variable

# What orchestrators ask; all that they learn is yes, or no and why.
PROBES = frozenset(
    {"/livez", "/readyz", "/health", "/v2/health/live", "/v2/health/ready", "/.well-known/live", "/.well-known/ready"}
)

Scope = MutableMapping[str, Any]
App = Callable[[Any, Any, Any], Awaitable[None]]


def known_keys(settings: Settings) -> tuple[str, ...]:
    """Digests of the keys of VIM_API_KEYS and VIM_API_KEYS_FILE; none where neither is set.

    Raises SettingsError for a file that cannot be read or holds no key.
    """
    return settings.api_keys + (() if settings.api_keys_file is None else _in_file(settings.api_keys_file))


def _in_file(path: Path) -> tuple[str, ...]:
    name = variable("api_keys_file")
    try:
        lines = path.read_text(encoding="ascii").splitlines()
        return api_keys.digests(line for line in lines if not line.startswith("#"))
    except OSError as error:
        raise SettingsError(f"{name}: {path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise SettingsError(f"{name}: {path} must hold keys, one a line, each of {api_keys.LOOKS}") from None


class Gate:
    """ASGI: lets pass who shows a key, and whoever asks a probe. `refuse` makes the answer for the others."""

    def __init__(self, app: App, known: Collection[str], refuse: Callable[[Scope, ServiceError], App]) -> None:
        self._app = app
        self._known = known
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Serve one connection scope."""
        if scope["type"] == "lifespan" or scope["path"] in PROBES or api_keys.admits(self._known, key_in(scope)):
            await self._app(scope, receive, send)
            return
        if scope["type"] == "websocket":  # there is none here; whoever adds one is asked for a key
            await send({"type": "websocket.close", "code": 1008})
            return
        error = Unauthorized("this server wants an API key: Authorization: Bearer KEY, or X-API-Key: KEY")
        await self._refuse(scope, error)(scope, receive, send)


def key_in(scope: Scope) -> bytes:
    """The key that a request shows; empty when it shows none."""
    headers: dict[bytes, bytes] = dict(scope["headers"])
    scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
    return key.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key", b"").strip()
