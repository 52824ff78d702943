"""One HTTP/1.1 connection with as little overhead as possible, because the client must not limit the measurement.

It supports the part of the protocol that the compared servers use: a status, a length or chunks, keep-alive.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import cast

LOST = 0  # the status of a request whose connection ended before its answer
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"transfer-encoding: *chunked", re.IGNORECASE)
_CLOSE = re.compile(rb"connection: *close", re.IGNORECASE)
_LAST_CHUNK = b"\r\n0\r\n\r\n"


class Connection(asyncio.Protocol):
    """One request at a time. `body` is that of the last answer."""

    def __init__(self) -> None:
        self.open = False
        self.body = b""
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[int] | None = None
        self._received = b""
        self._need: int | None = None  # bytes of the whole answer, once its header says so

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Open the connection."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(1 << 24)
        self.open = True

    def connection_lost(self, _: Exception | None) -> None:
        """Record that the open request gets no answer."""
        self.open = False
        self._settle(LOST)

    def data_received(self, data: bytes) -> None:
        """Collect the bytes of one answer."""
        self._received = self._received + data if self._received else data
        if self._complete():
            head, _, body = self._received.partition(b"\r\n\r\n")
            self.body = _joined(body) if _CHUNKED.search(head) else body
            status = int(head[9:12])
            if _CLOSE.search(head):
                self.close()
            self._received, self._need = b"", None
            self._settle(status)

    def ask(self, parts: Sequence[bytes]) -> asyncio.Future[int]:
        """Send a request in parts; returns the status of the answer."""
        self._answer = asyncio.get_running_loop().create_future()
        self.write(parts)
        return self._answer

    def write(self, parts: Sequence[bytes]) -> None:
        """Send raw bytes."""
        if self.open and self._transport is not None:
            self._transport.writelines(parts)
        else:
            self._settle(LOST)

    def close(self) -> None:
        """Close the connection, even before an answer."""
        self.open = False
        if self._transport is not None:
            self._transport.abort()

    def _complete(self) -> bool:
        if self._need is None:
            end = self._received.find(b"\r\n\r\n")
            if end < 0:
                return False
            head = self._received[:end]
            if _CHUNKED.search(head):
                return self._received.endswith(_LAST_CHUNK)
            length = _LENGTH.search(head)
            self._need = end + 4 + (int(length[1]) if length else 0)
        return len(self._received) >= self._need

    def _settle(self, status: int) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(status)


def _joined(body: bytes) -> bytes:
    """The data of a body in chunks."""
    parts = []
    while body:
        size, _, rest = body.partition(b"\r\n")
        length = int(size.partition(b";")[0], 16)
        parts.append(rest[:length])
        body = rest[length + 2 :] if length else b""
    return b"".join(parts)


async def connect(port: int) -> Connection:
    """A connection to this port of 127.0.0.1; a closed one if no server listens."""
    loop = asyncio.get_running_loop()
    try:
        _, connection = await loop.create_connection(Connection, "127.0.0.1", port)
    except OSError:
        return Connection()
    return connection


def post(path: str, length: int, content_type: str = "image/jpeg", allowed_ms: int = 0) -> bytes:
    """The header of a request with a body of `length` bytes, with the time limit for the answer if there is one."""
    allowed = f"X-Request-Timeout-Ms: {allowed_ms}\r\n" if allowed_ms else ""
    return (
        f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n"
        f"{allowed}\r\n"
    ).encode()
