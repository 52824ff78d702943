"""HTTP as other programs speak it: half-closed connections, pipelines, old versions, broken requests."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn

from service.server.protocol import Protocol

pytestmark = pytest.mark.anyio
GET = b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n"


class Answers:
    """An application that answers with the path, when it may, in one piece or in several."""

    def __init__(self) -> None:
        self.may = asyncio.Event()
        self.may.set()
        self.left = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        body = scope["path"].encode()
        if b"slow" in body:
            gone = asyncio.create_task(self._until_gone(receive))
            may = asyncio.create_task(self.may.wait())
            await asyncio.wait([gone, may], return_when=asyncio.FIRST_COMPLETED)
            self.left += gone.done()
            gone.cancel()
            may.cancel()
        pieces = [body[i : i + 2] for i in range(0, len(body), 2)] if b"pieces" in body else [body]
        headers = [] if b"pieces" in body else [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for number, piece in enumerate(pieces, 1):
            await send({"type": "http.response.body", "body": piece, "more_body": number < len(pieces)})

    async def _until_gone(self, receive: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass


@pytest.fixture
async def served(anyio_backend: object) -> AsyncIterator[tuple[Answers, int]]:
    """The application and its port."""
    app = Answers()
    config = uvicorn.Config(app, http=Protocol, ws="none", lifespan="off", log_config=None, access_log=False)
    config.load()
    state = uvicorn.server.ServerState()

    def connection() -> Protocol:
        return Protocol(config=config, server_state=state, app_state={})

    server = await asyncio.get_running_loop().create_server(connection, "127.0.0.1", 0)
    yield app, server.sockets[0].getsockname()[1]
    server.close()
    for one in list(state.connections):
        one.shutdown()


async def exchange(port: int, *sent: bytes, half_close: bool = False) -> bytes:
    """Send, and read until the server closes or is silent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for part in sent:
        writer.write(part)
        await writer.drain()
    if half_close:
        writer.write_eof()
    received = b""
    try:
        async with asyncio.timeout(0.5):
            while part := await reader.read(65_536):
                received += part
    except TimeoutError:
        pass
    writer.close()
    return received


async def left(app: Answers) -> None:
    """Wait until the application has learned that a client has left."""
    async with asyncio.timeout(5):
        while not app.left:
            await asyncio.sleep(0.01)


async def test_a_half_closed_connection_is_answered(served: tuple[Answers, int]) -> None:
    """A client may close its side after a complete request (`nc -N`); the server closes after the answer."""
    app, port = served
    app.may.clear()
    asyncio.get_running_loop().call_later(0.1, app.may.set)
    received = await exchange(port, GET % b"slow", half_close=True)

    assert received.startswith(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert b"\r\n\r\nHTTP/1.1 200 OK\r\n" in received
    assert received.endswith(b"\r\n\r\n/slow")
    assert 0 == app.left


async def test_a_half_closed_connection_gets_a_whole_stream(served: tuple[Answers, int]) -> None:
    """A half-closed connection also gets a complete answer in pieces."""
    received = await exchange(served[1], GET % b"pieces", half_close=True)

    assert received.endswith(b"\r\n0\r\n\r\n")


async def test_half_a_request_before_the_end_is_not_answered(served: tuple[Answers, int]) -> None:
    """Half a request before the end of the connection is not answered; the application sees a disconnect."""
    app, port = served
    app.may.clear()
    half = b"POST /slow HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf"

    assert b"" == await exchange(port, half, half_close=True)
    await left(app)


async def test_a_client_that_has_left_is_noticed(served: tuple[Answers, int]) -> None:
    """A client that has left is noticed, because it resets the connection after an interim response."""
    app, port = served
    app.may.clear()
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(GET % b"slow")
    await asyncio.sleep(0.05)
    connection.close()
    await left(app)


async def test_a_connection_that_is_reset_ends_its_request(served: tuple[Answers, int]) -> None:
    """A connection that is reset cancels its request at once."""
    app, port = served
    app.may.clear()
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.sendall(GET % b"slow")
    await asyncio.sleep(0.05)
    connection.close()
    await left(app)


async def test_good_requests_before_a_broken_one_are_answered(served: tuple[Answers, int]) -> None:
    """Three pipelined requests have their answers, in order; then comes the 400."""
    pipeline = b"".join(GET % name for name in (b"slow", b"2", b"3"))
    received = await exchange(served[1], pipeline + b"no request at all\r\n\r\n")

    assert 3 == received.count(b"HTTP/1.1 200 OK")
    assert received.index(b"/slow") < received.index(b"/2") < received.index(b"/3") < received.index(b"HTTP/1.1 400")


async def test_a_request_with_a_malformed_body_has_one_answer(served: tuple[Answers, int]) -> None:
    """A body whose chunks are malformed gets 400 at once, and no second answer."""
    received = await exchange(
        served[1], b"POST /slow HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nno size\r\n"
    )

    assert received.startswith(b"HTTP/1.1 400 Bad Request")
    assert received.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("hosts", [b"", b"Host: a\r\nHost: b\r\n"])
async def test_a_request_must_have_one_host(served: tuple[Answers, int], hosts: bytes) -> None:
    """RFC 9112 requires 400 for HTTP/1.1 without a Host header, or with several."""
    received = await exchange(served[1], b"GET /x HTTP/1.1\r\n" + hosts + b"\r\n")

    assert received.startswith(b"HTTP/1.1 400 Bad Request")
    assert b"one Host header" in received


async def test_http_1_0_needs_no_host_and_gets_no_chunks(served: tuple[Answers, int]) -> None:
    """HTTP/1.0 needs no Host header, and the end of the connection ends its body."""
    received = await exchange(served[1], b"GET /pieces HTTP/1.0\r\n\r\n")

    assert b"transfer-encoding" not in received.lower()
    assert received.endswith(b"\r\n\r\n/pieces")


async def test_http_1_0_gets_no_interim_response(served: tuple[Answers, int]) -> None:
    """HTTP/1.0 clients get no interim response."""
    request = b"POST /slow HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx"

    assert b"100 Continue" not in await exchange(served[1], request, half_close=True)


async def test_connections_beyond_the_limit_are_answered_503(
    served: tuple[Answers, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections beyond the limit get 503, and connections within the limit are answered."""
    monkeypatch.setattr(Protocol, "max_connections", 2)
    held = [await asyncio.open_connection("127.0.0.1", served[1]) for _ in range(2)]
    await asyncio.sleep(0.05)
    refused = await exchange(served[1])
    held[0][1].write(GET % b"1")
    answered = await held[0][0].read(1000)

    assert refused.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert answered.endswith(b"/1")
    for _, writer in held:
        writer.close()
