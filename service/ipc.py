"""Sends messages between two processes of this program over a socket pair.

A frame is a 4-byte little-endian length and the message in MessagePack, with the name of its class.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import struct
from collections.abc import Callable
from typing import Any, BinaryIO, cast

import msgspec

LENGTH = struct.Struct("<I")
_ENCODER = msgspec.msgpack.Encoder()


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Base class of all messages. Their fields may be values, containers, dataclasses and named tuples."""


def pack(message: Message) -> bytes:
    """Encode a message as one frame."""
    body = _ENCODER.encode(message)
    return LENGTH.pack(len(body)) + body


def read(stream: BinaryIO, kind: Any) -> Any:
    """Read the next message of a blocking stream, one of the union `kind`; None when the other end is closed."""
    header = _exactly(stream, LENGTH.size)
    if header is None:
        return None
    body = _exactly(stream, LENGTH.unpack(header)[0])
    return None if body is None else decoder(kind).decode(body)


@functools.cache
def decoder(kind: Any) -> msgspec.msgpack.Decoder[Any]:
    """The decoder of a union of messages."""
    return msgspec.msgpack.Decoder(kind)


def _exactly(stream: BinaryIO, size: int) -> bytes | None:
    """Read `size` bytes, also from a stream without a buffer; None at its end."""
    parts = b""
    while len(parts) < size:
        if not (part := stream.read(size - len(parts))):
            return None
        parts += part
    return parts


class Connection(asyncio.Protocol):
    """One end of a socket pair, on the event loop. Calls `on_message` with each message, one of the union `kind`.

    `ended` is done when the other end is closed.
    """

    def __init__(self, kind: Any, on_message: Callable[[Any], None]) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._decode = decoder(kind).decode
        self._on_message = on_message
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def open(cls, end: socket.socket, kind: Any, on_message: Callable[[Any], None]) -> Connection:
        """Open the connection over one end of a socket pair."""
        make = asyncio.get_running_loop().create_unix_connection
        _, connection = await make(lambda: cls(kind, on_message), sock=end)
        return connection

    def send(self, message: Message) -> None:
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
            self._on_message(self._decode(received[start + LENGTH.size : end]))
            start = end
        del received[:start]

    def connection_lost(self, _: Exception | None) -> None:
        """Mark the connection as ended."""
        if not self.ended.done():
            self.ended.set_result(None)
