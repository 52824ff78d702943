"""Connections that send nothing, half a header, a slow body or too much are closed in time and harm no others."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.e2e import raw
from tests.e2e.server import Server, serving
from tests.tiny import photo, write_tiny_model

HEADER_TIMEOUT_S, BODY_TIMEOUT_S = 1.5, 1.0
IDLE = 100
# Generous for a busy machine; a server without timers would never close the connection.
PATIENCE_S = 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with short time-outs."""
    folder = tmp_path_factory.mktemp("slow")
    with serving(
        folder,
        model=write_tiny_model(folder / "tiny"),
        header_timeout_ms=int(1000 * HEADER_TIMEOUT_S),
        body_timeout_ms=int(1000 * BODY_TIMEOUT_S),
        max_body_bytes=100_000,
    ) as running:
        yield running


def alive(connection: socket.socket) -> bytes:
    """A whole answer to /livez, which may arrive in pieces."""
    connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
    received = b""
    while not received.endswith(b"}"):
        part = connection.recv(65_536)
        assert part, received
        received += part
    return received


def classify(server: Server) -> int:
    """The status of an ordinary request."""
    return httpx.post(f"{server.url}/v1/classify", content=photo(), timeout=120).status_code


Ended = tuple[bytes, float]  # what came until the end of the connection, and the seconds until then

INCOMPLETE: dict[str, tuple[bytes, bytes]] = {  # what is sent, and the beginning of its answer
    "nothing": (b"", b""),
    "a line break": (b"\r\n", b""),
    "half a line": (b"POST /v1/clas", b"HTTP/1.1 408 "),
    "half a header": (b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nX-A", b"HTTP/1.1 408 "),
    "half a second header": (b"GET /li", b"HTTP/1.1 408 "),
}


@pytest.fixture(scope="module")
def ended(server: Server) -> dict[str, Ended]:
    """How the connections with an incomplete header end; they wait together."""

    def end(name: str) -> Ended:
        with raw.connect(server) as connection:
            if "second" in name:
                assert alive(connection).startswith(b"HTTP/1.1 200 ")
            connection.sendall(INCOMPLETE[name][0])
            return raw.ended_after(connection)

    with ThreadPoolExecutor(len(INCOMPLETE)) as pool:
        return dict(zip(INCOMPLETE, pool.map(end, INCOMPLETE), strict=True))


@pytest.mark.parametrize("name", INCOMPLETE)
def test_a_header_that_does_not_come_ends_the_connection(ended: dict[str, Ended], name: str) -> None:
    """A connection without a complete header is closed after the time limit, with 408 if a part was sent.

    After an answer the connection may be idle for long, but not in the middle of a header.
    """
    received, seconds = ended[name]
    answer = INCOMPLETE[name][1]

    assert received.startswith(answer)
    assert bool(answer) == bool(received)
    assert 0.5 * HEADER_TIMEOUT_S < seconds < PATIENCE_S


def test_an_idle_connection_is_kept_after_an_answer(server: Server) -> None:
    """An idle connection is kept open after an answer."""
    with raw.connect(server) as connection:
        for _ in range(2):
            assert alive(connection).startswith(b"HTTP/1.1 200 ")
            connection.settimeout(HEADER_TIMEOUT_S + 0.5)
            with pytest.raises(TimeoutError):
                connection.recv(1)
            connection.settimeout(30)


def test_a_slow_body_is_answered_408_and_closed(server: Server) -> None:
    """A slow body is answered with 408, and the connection is closed."""
    with raw.connect(server) as connection:
        connection.sendall(raw.post("/v1/classify", length=1000) + b"x")
        received, seconds = raw.ended_after(connection)

        assert received.startswith(b"HTTP/1.1 408 ")
        assert b"VIM_BODY_TIMEOUT_MS" in received
        assert BODY_TIMEOUT_S < seconds < PATIENCE_S


@pytest.mark.parametrize("declared", [True, False])
def test_a_large_body_is_refused_before_its_end(server: Server, declared: bool) -> None:
    """A large body is refused at its Content-Length or at the limit, and the connection is closed."""
    head = raw.post("/v1/classify", length=10_000_000)
    if not declared:
        head = head.replace(b"Content-Length: 10000000", b"Transfer-Encoding: chunked") + b"30D40\r\n"
    with raw.connect(server) as connection:
        connection.sendall(head + (b"" if declared else b"x" * 150_000))
        received, _ = raw.ended_after(connection)

        assert received.startswith(b"HTTP/1.1 413 ")
        assert b"100000 (VIM_MAX_BODY_BYTES)" in received


def flood(connection: socket.socket, part: bytes, times: int) -> None:
    """Send the same again and again."""
    for _ in range(times):
        connection.sendall(part)


def test_a_header_of_a_gigabyte_is_refused(server: Server) -> None:
    """A header of a gigabyte is refused while it arrives."""
    with raw.connect(server) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nX-Long: ")
        with pytest.raises(ConnectionError):
            flood(connection, b"x" * 16_384, 65_536)


def test_trailers_without_end_are_cut_off(server: Server) -> None:
    """Endless trailers after a chunked body end the connection."""
    head = raw.post("/v1/classify", length=1).replace(b"Content-Length: 1", b"Transfer-Encoding: chunked")
    with raw.connect(server) as connection:
        connection.sendall(head + b"1\r\nx\r\n0\r\n")
        with pytest.raises(ConnectionError):
            flood(connection, b"X-Trailer: " + b"x" * 1000 + b"\r\n", 1_000_000)


def test_idle_connections_harm_nobody_and_are_freed(server: Server) -> None:
    """With 100 idle connections and 100 half headers other clients are answered, and the descriptors are freed."""
    assert 200 == classify(server)
    before = raw.descriptors(server)
    held: list[socket.socket] = []
    try:
        for turn in range(2 * IDLE):
            held.append(raw.connect(server))
            if turn % 2:
                held[-1].sendall(b"POST /v1/classify HTTP/1.1\r\nHost")
        assert raw.until(lambda: raw.descriptors(server) >= before + IDLE)
        assert [200] * 5 == [classify(server) for _ in range(5)]

        assert raw.until(lambda: raw.descriptors(server) <= before + 2, within_s=PATIENCE_S)
    finally:
        for connection in held:
            connection.close()


def test_a_client_that_does_not_read_keeps_nobody_waiting(server: Server) -> None:
    """A client that sends a thousand requests and reads no answer does not delay others."""
    with raw.connect(server) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(1)
        with pytest.raises(TimeoutError):
            flood(connection, b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n", 1_000_000)

        assert 200 == classify(server)
