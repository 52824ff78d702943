"""The container's health check, against a server whose answers the test sets."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from service.server import healthcheck


class _Answers(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(type(self).status if self.path == "/readyz" else 404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        pass


class _OnIpv6(ThreadingHTTPServer):
    address_family = socket.AF_INET6


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the host of a container, and a proxy that must not be used."""
    monkeypatch.setenv("VIM_HOST", "0.0.0.0")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A server on the loopback interface, whose port is in VIM_PORT."""
    yield from _serving(ThreadingHTTPServer(("127.0.0.1", 0), _Answers), monkeypatch)


def _serving(server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("VIM_PORT", str(server.server_port))
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("status", "expected"), [(200, 0), (503, 1), (404, 1), (500, 1)])
def test_healthy_is_200_alone(port: int, monkeypatch: pytest.MonkeyPatch, status: int, expected: int) -> None:
    """The check succeeds only if /readyz answers 200."""
    monkeypatch.setattr(_Answers, "status", status)
    assert healthcheck.main() == expected


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
def test_asks_over_ipv6_where_the_server_listens_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """With VIM_HOST=:: the check connects by IPv6."""
    try:
        server = _OnIpv6(("::1", 0), _Answers)
    except OSError:
        pytest.skip("no IPv6 loopback")
    monkeypatch.setenv("VIM_HOST", "::")
    for _ in _serving(server, monkeypatch):
        assert healthcheck.main() == 0


def test_nobody_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The check fails with the reason and no traceback if no server listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("VIM_PORT", str(unused.getsockname()[1]))
        assert healthcheck.main() == 1
    assert "no answer from port" in capsys.readouterr().err


def test_not_http(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check fails if the server on the port does not speak HTTP."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        monkeypatch.setenv("VIM_PORT", str(other.getsockname()[1]))
        thread = threading.Thread(target=lambda: _talk_nonsense(other))
        thread.start()
        assert healthcheck.main() == 1
        thread.join()


def _talk_nonsense(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(1000)
        connection.sendall(b"220 mail.example ESMTP\r\n")


def test_a_kubernetes_service_link_is_no_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check uses the default port if Kubernetes has set VIM_PORT to tcp://..., as the server does."""
    asked: list[tuple[str, int]] = []
    monkeypatch.setenv("VIM_PORT", "tcp://10.0.0.7:8000")
    monkeypatch.setattr(healthcheck, "_ask", lambda *address, encrypted: asked.append(address))
    healthcheck.main()
    assert asked == [("127.0.0.1", 8000)]


@pytest.mark.parametrize("text", ["0", "http"])
def test_a_port_that_cannot_be_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    """The check fails with a message about VIM_PORT if it is 0 or not a number."""
    monkeypatch.setenv("VIM_PORT", text)
    assert healthcheck.main() == 1
    assert "VIM_PORT" in capsys.readouterr().err
