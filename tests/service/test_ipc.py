"""Messages over a socket pair arrive whole, in any pieces."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from service.ipc import Connection, pack
from service.server.prefork.messages import FromChild, Submissions

pytestmark = pytest.mark.anyio


async def test_messages_arrive_whole_and_in_order() -> None:
    """Messages arrive complete and in order, in any pieces, and the closed other end is noticed."""
    ours, theirs = socket.socketpair()
    received: list[Any] = []
    connection = await Connection.open(ours, FromChild, received.append)
    messages: list[FromChild] = [
        Submissions(),
        Submissions(cancelled=tuple(range(1000))),
        Submissions(promoted=(2,)),
    ]
    stream = b"".join(pack(one) for one in messages)

    for piece in (stream[:2], stream[2:9], stream[9:-3], stream[-3:]):
        theirs.sendall(piece)
        await asyncio.sleep(0.01)
    theirs.close()
    async with asyncio.timeout(5):
        await connection.ended

    assert messages == received
    connection.send(Submissions(promoted=(3,)))  # does nothing


async def test_both_ends_speak() -> None:
    """Two connections over one socket pair exchange messages in both directions."""
    ours, theirs = socket.socketpair()
    received: list[Any] = []
    one, two = [await Connection.open(end, FromChild, received.append) for end in (ours, theirs)]
    one.send(Submissions())
    two.send(Submissions(promoted=(2,)))
    async with asyncio.timeout(5):
        while len(received) < 2:
            await asyncio.sleep(0.001)
    one.close()
    async with asyncio.timeout(5):
        await two.ended

    assert {(), (2,)} == {message.promoted for message in received}
