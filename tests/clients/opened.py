"""The clients that a test has opened. A fixture closes them: their sockets would be reported in other tests."""

from __future__ import annotations

from typing import Any

_OPEN: list[Any] = []


def opened(client: Any) -> Any:
    """Return the client, which is closed after the test."""
    _OPEN.append(client)
    return client


def close_all() -> None:
    """Close the clients."""
    while _OPEN:
        _OPEN.pop().close()
