"""Messages over a socket pair, however the bytes arrive."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from service.devices.messages import FromHttp, Holding, Orders, pack
from service.ipc import Connection

pytestmark = pytest.mark.anyio


async def test_messages_arrive_whole_and_in_order() -> None:
    """Also in pieces, and several at once; then the end is noticed."""
    ours, theirs = socket.socketpair()
    heard: list[Any] = []
    link = await Connection.open(ours, heard.append)
    messages: list[FromHttp] = [Holding(1, overdue=False), Orders(dropped=tuple(range(1000))), Holding(2, overdue=True)]
    stream = b"".join(pack(one) for one in messages)

    for piece in (stream[:2], stream[2:9], stream[9:-3], stream[-3:]):
        theirs.sendall(piece)
        await asyncio.sleep(0.01)
    theirs.close()
    async with asyncio.timeout(5):
        await link.ended

    assert messages == heard
    link.say(Holding(3, overdue=False))  # nobody hears it


async def test_both_ends_speak() -> None:
    """A socket pair, a link at each end."""
    ours, theirs = socket.socketpair()
    heard: list[Any] = []
    one, two = await Connection.open(ours, heard.append), await Connection.open(theirs, heard.append)
    one.say(Holding(1, overdue=False))
    two.say(Holding(2, overdue=False))
    async with asyncio.timeout(5):
        while len(heard) < 2:
            await asyncio.sleep(0.001)
    one.close()
    async with asyncio.timeout(5):
        await two.ended

    assert {1, 2} == {message.images for message in heard}
