"""A server on this event loop with scripted answers, for tests of the load generator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

Answer = Callable[[int], bytes | None]  # number of the request -> the answer; None: the connection is closed
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


@dataclass
class Scripted:
    """The requests that a scripted server has received."""

    port: int = 0
    heads: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)


@asynccontextmanager
async def scripted(answer: Answer, delay_s: float = 0.0) -> AsyncIterator[Scripted]:
    """A scripted server on a free port of 127.0.0.1."""
    seen = Scripted()
    connections: list[tuple[asyncio.StreamWriter, asyncio.Task[None]]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                seen.heads.append(head)
                length = int(head.lower().split("content-length: ")[1].split("\r\n")[0])
                seen.bodies.append(await reader.readexactly(length))
                reply = answer(len(seen.bodies))
                await asyncio.sleep(delay_s)
                if reply is None:
                    return
                writer.write(reply)
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass  # the client or the test has ended
        finally:
            writer.close()

    def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append((writer, asyncio.create_task(serve(reader, writer))))

    server = await asyncio.start_server(accepted, "127.0.0.1")
    seen.port = server.sockets[0].getsockname()[1]
    try:
        yield seen
    finally:
        asyncio.get_running_loop().remove_reader(server.sockets[0])  # accept no more
        await _turns(4)  # includes a connection that was accepted last, on a busy machine
        server.close()
        for writer, handler in connections:
            handler.cancel()
            writer.close()  # a handler that is cancelled before it begins closes nothing
        await _turns(2)


async def _turns(count: int) -> None:
    """Wait for `count` iterations of the event loop."""
    for _ in range(count):
        await asyncio.sleep(0)
