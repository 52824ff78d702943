"""Sends messages between two processes of this program over a socket pair.

A frame is a 4-byte little-endian length and a pickle. Pickle is safe here, because both ends are this program. Messages
that are sent with every batch are named tuples: pickle handles them without calls into Python code.
"""

from __future__ import annotations

import asyncio
import pickle
import socket
import struct
from collections.abc import Callable
from typing import Any, BinaryIO, cast

LENGTH = struct.Struct("<I")


def pack(message: object) -> bytes:
    """Encode a message as one frame."""
    body = pickle.dumps(message, protocol=5)
    return LENGTH.pack(len(body)) + body


def read(stream: BinaryIO) -> Any:
    """Read the next message of a blocking stream; None when the other end is closed."""
    header = _exactly(stream, LENGTH.size)
    if header is None:
        return None
    body = _exactly(stream, LENGTH.unpack(header)[0])
    return None if body is None else pickle.loads(body)


def _exactly(stream: BinaryIO, size: int) -> bytes | None:
    """Read `size` bytes, also from a stream without a buffer; None at its end."""
    parts = b""
    while len(parts) < size:
        if not (part := stream.read(size - len(parts))):
            return None
        parts += part
    return parts


class Connection(asyncio.Protocol):
    """One end of a socket pair, on the event loop. Calls `on_message` with each message.

    `ended` is done when the other end is closed.
    """

    def __init__(self, on_message: Callable[[Any], None]) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._on_message = on_message
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def open(cls, end: socket.socket, on_message: Callable[[Any], None]) -> Connection:
        """Open the connection over one end of a socket pair."""
        make = asyncio.get_running_loop().create_unix_connection
        _, connection = await make(lambda: cls(on_message), sock=end)
        return connection

    def send(self, message: object) -> None:
        """Send a message; does nothing when the other end is closed."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(pack(message))

    def close(self) -> None:
        """Close this end."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Deliver every message that is complete."""
        received = self._received
        received += data
        start = 0
        while len(received) - start >= LENGTH.size:
            end = start + LENGTH.size + LENGTH.unpack_from(received, start)[0]
            if len(received) < end:
                break
            self._on_message(pickle.loads(received[start + LENGTH.size : end]))
            start = end
        del received[:start]

    def connection_lost(self, _: Exception | None) -> None:
        """Mark the connection as ended."""
        if not self.ended.done():
            self.ended.set_result(None)
