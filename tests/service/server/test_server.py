"""Connections are accepted quickly, even if iterations of the event loop are long."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace
from typing import Any, cast

import pytest
import uvicorn

from service.engine.engine import Engine
from service.server.protocol import protocol
from service.server.server import Server
from service.settings import Settings
from tests.service.engine.fake_backend import FakeBackend

pytestmark = pytest.mark.anyio

CONNECTIONS, TURNS = 40, 6


async def app(scope: Any, receive: Any, send: Any) -> None:
    """An application that is never called."""


async def test_many_connections_are_accepted_in_a_few_turns_of_the_loop() -> None:
    """Many connections are accepted in a few iterations of the event loop, not one per iteration."""
    config = uvicorn.Config(app, port=0, loop="uvloop", http=protocol(10), lifespan="off", log_config=None)
    config.load()
    engine = cast(Engine, SimpleNamespace(settings=Settings(), metrics=None, backend=FakeBackend()))
    server = Server(config, engine, connections=CONNECTIONS)
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    address = server.servers[0].sockets[0].getsockname()
    clients = [socket.create_connection(address) for _ in range(CONNECTIONS)]  # the kernel takes them, for now
    for _ in range(TURNS):
        await asyncio.sleep(0)
    accepted = len(server.server_state.connections)
    for client in clients:
        client.close()
    for listener in server.servers:
        listener.close()
    await server.shutdown()
    await asyncio.sleep(0.01)

    assert len(clients) == accepted
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(address)
