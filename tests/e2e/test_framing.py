"""Requests written by hand, on which two servers in a row might disagree where one ends and the next begins."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from tests.e2e import raw
from tests.e2e.server import Server, serving
from tests.tiny import photo, write_tiny_model

HIDDEN = b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
POST = b"POST /v1/classify HTTP/1.1\r\nHost: x\r\n"
OFFERS = {
    "h2c": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
    "websocket": b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with default settings."""
    folder = tmp_path_factory.mktemp("framing")
    with serving(folder, model=write_tiny_model(folder / "tiny")) as running:
        yield running


def statuses(server: Server, *pieces: bytes) -> list[bytes]:
    """Statuses of all answers to these bytes, sent in pieces, until the server closes."""
    with raw.connect(server) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            connection.sendall(piece)
            connection.settimeout(0.2)
            with contextlib.suppress(TimeoutError):
                connection.recv(1, socket.MSG_PEEK)  # the server has read the piece by now
        connection.settimeout(30)
        received, _ = raw.ended_after(connection)
    return [part[:3] for part in received.split(b"HTTP/1.1 ")[1:]]


@pytest.mark.parametrize(
    "framing",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: 5, 5\r\n",
        b"Content-Length: +5\r\n",
        b"Content-Length: \xb2\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"Transfer-Encoding:\r\n chunked\r\n",
        b"X: y\rTransfer-Encoding: chunked\r\n",
        b"X: y\x00z\r\n",
    ],
)
def test_a_body_of_doubtful_length_ends_the_connection(server: Server, framing: bytes) -> None:
    """A body of ambiguous length gets 400 and ends the connection, so that no bytes after it become a request."""
    assert [b"400"] == statuses(server, POST + framing + b"\r\n0\r\n\r\n" + HIDDEN)


@pytest.mark.parametrize("offer", OFFERS.values(), ids=list(OFFERS))
@pytest.mark.parametrize("apart", [True, False], ids=["body apart", "in one piece"])
def test_an_offer_to_upgrade_changes_nothing(server: Server, offer: bytes, apart: bool) -> None:
    """An upgrade offer, as of `curl --http2`, is ignored: the body is the image and contains no request."""
    head, image = POST + offer, photo()
    pieces = (
        head + b"Content-Length: %d\r\n\r\n" % len(HIDDEN),
        HIDDEN,
        head + b"Transfer-Encoding: chunked\r\n\r\n",
        b"%x\r\n%s\r\n0\r\n\r\n" % (len(image), image),
        LAST.replace(b"close", b"close, Upgrade\r\nUpgrade: h2c"),
    )

    assert [b"415", b"200", b"200"] == statuses(server, *(pieces if apart else [b"".join(pieces)]))


def test_connect_is_refused(server: Server) -> None:
    """CONNECT is refused, and the bytes after it are not read."""
    assert [b"400"] == statuses(server, b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n" + HIDDEN)


def test_the_body_of_a_refused_request_is_no_request(server: Server) -> None:
    """The body of a request to an unknown path is skipped, and the next request begins after it."""
    missing = b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(HIDDEN)

    assert [b"404", b"200"] == statuses(server, missing + HIDDEN + LAST)


def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    """Pipelined requests are answered in order, although the first one is slow."""
    image = photo()
    slow = POST + b"Content-Length: %d\r\n\r\n" % len(image) + image

    assert [b"200", b"404", b"200"] == statuses(server, slow + HIDDEN.replace(b"/v2", b"/no") + LAST)
