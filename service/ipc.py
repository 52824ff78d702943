"""A socket between two processes of this program, for messages both ways as they come: no task waits for them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, cast

from service.devices.messages import HEADER, FromHttp, ToDevice, ToHttp, pack, unpack


class Link(asyncio.Protocol):
    """This end. `hear` is called with each message; `ended` is done when the other end is gone."""

    def __init__(self, hear: Callable[[Any], None]) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._hear = hear
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def over(cls, connection: socket.socket, hear: Callable[[Any], None]) -> Link:
        """The link over one end of a socket pair."""
        make = asyncio.get_running_loop().create_unix_connection
        _, link = await make(lambda: cls(hear), sock=connection)
        return link

    def say(self, message: FromHttp | ToHttp | ToDevice) -> None:
        """Send a message; nothing happens when the other end is gone."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(pack(message))

    def close(self) -> None:
        """Say no more, and hear no more."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is there."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Hear every message that is complete."""
        received = self._received
        received += data
        start = 0
        while len(received) - start >= HEADER.size:
            end = start + HEADER.size + HEADER.unpack_from(received, start)[0]
            if len(received) < end:
                break
            self._hear(unpack(bytes(received[start + HEADER.size : end])))
            start = end
        del received[:start]

    def connection_lost(self, _: Exception | None) -> None:
        """The other end is gone."""
        if not self.ended.done():
            self.ended.set_result(None)
