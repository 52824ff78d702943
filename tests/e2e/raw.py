"""Raw connections that break HTTP in ways that no library allows, and their cost for the server."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

import psutil

from tests.e2e.server import Server


def connect(server: Server) -> socket.socket:
    """A connection on which nothing has been sent."""
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def post(path: str, *, length: int, extra: str = "") -> bytes:
    """The header of a POST with this Content-Length."""
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n{extra}\r\n".encode()


def ended_after(connection: socket.socket) -> tuple[bytes, float]:
    """All bytes that the server sends until it closes the connection, and the seconds until then."""
    start, received = time.monotonic(), b""
    try:
        while part := connection.recv(65_536):
            received += part
    except ConnectionError:
        pass
    return received, time.monotonic() - start


def descriptors(server: Server) -> int:
    """Open file descriptors of the HTTP process."""
    return int(psutil.Process(server.process.pid).num_fds())


def memory_mb(server: Server) -> float:
    """Resident memory of the HTTP process."""
    return float(psutil.Process(server.process.pid).memory_info().rss) / 1e6


def until(condition: Callable[[], bool], within_s: float = 30) -> bool:
    """Whether the condition becomes true in time."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return condition()
