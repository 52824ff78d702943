"""The fetcher against real servers on the loopback address, which count as public here, and against a made-up web."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from service import __version__
from service.fetch.addresses import Address
from service.fetch.fetcher import Fetcher, FetchLimits, direct, resolve
from service.fetch.hosts import rules
from service.fetch.outcome import FetchError
from tests.service.fetch.fake_web import LIMITS, PUBLIC, SHORT, FakeWeb, Page

pytestmark = pytest.mark.anyio

OK = b"HTTP/1.1 200 OK\r\n"
SITE = "http://a.example/"
Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


def local(address: Address) -> bool:
    """Return whether an address counts as public in these tests."""
    return address.is_loopback


async def to_loopback(name: str, port: int) -> list[str]:
    """Every name leads to this machine."""
    return ["127.0.0.1"]


def ignore(size: int) -> None:
    """Receive bytes without counting them."""


def fetcher(port: int, limits: FetchLimits = LIMITS, context: ssl.SSLContext | None = None) -> Fetcher:
    """A fetcher that may ask every host at this port of this machine."""
    return Fetcher(rules(f"*:{port}"), limits, resolver=to_loopback, transport=direct(context), is_public=local)


@asynccontextmanager
async def serving(answer: Answer, context: ssl.SSLContext | None = None) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server: its port and the headers that it has received."""
    heads: list[bytes] = []
    handlers: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.add(asyncio.current_task())
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            heads.append(await reader.readuntil(b"\r\n\r\n"))
            await answer(writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1], heads
    running = [one for one in handlers if one and not one.done()]
    for one in running:
        one.cancel()
    await asyncio.gather(*running)


def saying(*pieces: bytes) -> Answer:
    """An answer of these bytes."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(b"".join(pieces))
        await writer.drain()

    return answer


async def outcome(fetching: Awaitable[bytes]) -> str:
    """How a fetch that fails ends."""
    with pytest.raises(FetchError) as caught:
        await fetching
    return caught.value.outcome


async def test_the_request_says_who_asks_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """The request has Host, User-Agent and no credentials, cookies or proxy, whatever the environment has."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://user:secret@127.0.0.1:1")
    body = OK + b"Set-Cookie: a=b\r\nContent-Length: 6\r\n\r\nGIF89a"
    async with serving(saying(body)) as (port, heads):
        asking = fetcher(port)
        found = [await asking.fetch(f"http://a.example:{port}/b?c=%2f#d", ignore) for _ in range(2)]
        await asking.close()

    expected = {
        b"GET /b?c=%2f HTTP/1.1",
        b"Host: a.example:%d" % port,
        b"User-Agent: vim-server/" + __version__.encode(),
        b"Accept: image/*",
        b"Accept-Encoding: identity",
        b"Connection: close",
    }
    assert [b"GIF89a"] * 2 == found
    assert [expected] * 2 == [set(head.split(b"\r\n")) - {b""} for head in heads]


async def test_the_bytes_are_counted_as_they_arrive() -> None:
    """`receive` gets the size of every piece of a body without Content-Length, up to the limit exactly."""
    chunks = b"1f4\r\n" + b"x" * 500 + b"\r\n1f4\r\n" + b"y" * 500 + b"\r\n0\r\n\r\n"
    sizes: list[int] = []
    async with serving(saying(OK, b"Transfer-Encoding: chunked\r\n\r\n", chunks)) as (port, _):
        found = await fetcher(port).fetch(f"http://a.example:{port}/", sizes.append)

    assert b"x" * 500 + b"y" * 500 == found
    assert LIMITS.max_bytes == sum(sizes)


async def test_an_endless_stream_ends_at_the_limit() -> None:
    """A stream without an end is closed at the limit; its server cannot send much more than buffers hold."""
    sent = 0

    async def endless(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(OK + b"\r\n")
        while sent < 10_000_000_000:
            writer.write(b"x" * 65_536)
            await writer.drain()
            sent += 65_536

    received: list[int] = []
    async with serving(endless) as (port, _):
        limits = FetchLimits(max_bytes=1_000_000, timeout_s=30, concurrency=1)
        ended = await outcome(fetcher(port, limits).fetch(f"http://a.example:{port}/", received.append))

    assert "too_large" == ended
    assert sum(received) <= 1_000_000
    assert sent < 100_000_000


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort",
        OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nGIF89a",
        OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        OK + b"X: " + b"x" * 200_000,
        b"HTTP/1.1 302 Found\r\nLocation: http://a.example:99999999999/\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: /" + b"a" * 90_000 + b"\r\n\r\n",
    ],
    ids=["nothing", "SSH", "cut", "two lengths", "no chunk", "long header", "odd port", "long location"],
)
async def test_a_broken_answer_is_a_failed_fetch(answer: bytes) -> None:
    """Whatever a server sends, the fetch fails with an outcome, and with no other exception."""
    async with serving(saying(answer)) as (port, _):
        assert await outcome(fetcher(port).fetch(f"http://a.example:{port}/", ignore)) in ("unreachable", "not_allowed")


async def test_a_server_that_sends_too_slowly_is_left() -> None:
    """Bytes that arrive one by one do not extend the time of a fetch."""

    async def slow(writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"\r\n")
        while not writer.is_closing():
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.01)

    async with serving(slow) as (port, _):
        assert "timeout" == await outcome(fetcher(port, SHORT).fetch(f"http://a.example:{port}/", ignore))


async def test_a_port_without_a_listener_is_unreachable(unused_port: int) -> None:
    """A refused connection is a failed fetch."""
    assert "unreachable" == await outcome(fetcher(unused_port).fetch(f"http://a.example:{unused_port}/", ignore))


async def test_a_fetch_that_is_cancelled_closes_its_connection() -> None:
    """When the request ends, the server at the other end sees the end of the connection."""
    begun, gone = asyncio.Event(), asyncio.Event()

    async def wait(writer: asyncio.StreamWriter) -> None:
        begun.set()
        with contextlib.suppress(ConnectionError):
            while not writer.is_closing():
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                await writer.drain()
                await asyncio.sleep(0.01)
        gone.set()

    async with serving(wait) as (port, _):
        fetching = asyncio.create_task(fetcher(port).fetch(f"http://a.example:{port}/", ignore))
        await begun.wait()
        fetching.cancel()
        async with asyncio.timeout(30):
            await gone.wait()

    assert fetching.cancelled()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for cdn.example, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=x -addext subjectAltName=DNS:cdn.example"
    made = folder / "cert.pem", folder / "key.pem"
    files = ["-out", str(made[0]), "-keyout", str(made[1])]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    return made


@pytest.mark.parametrize(
    ("host", "trusted", "ends"),
    [
        ("cdn.example", True, b"GIF89a"),
        ("a.example", True, "unreachable"),
        ("cdn.example", False, "unreachable"),
    ],
)
async def test_tls_checks_the_name_and_not_the_address(
    certificate: tuple[Path, Path], host: str, trusted: bool, ends: bytes | str
) -> None:
    """SNI has the name, and the certificate must be trusted and for that name, although an address is dialled."""
    asked: list[str | None] = []
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(*certificate)
    served.sni_callback = lambda _, name, __: asked.append(name)
    context = ssl.create_default_context(cafile=certificate[0]) if trusted else None
    async with serving(saying(OK, b"Content-Length: 6\r\n\r\nGIF89a"), served) as (port, _):
        fetching = fetcher(port, context=context).fetch(f"https://{host}:{port}/", ignore)
        ended = await fetching if isinstance(ends, bytes) else await outcome(fetching)

    assert ends == ended
    assert [host] == asked


async def test_the_next_address_is_tried_when_one_is_down() -> None:
    """A name with several addresses is reached by the first that accepts a connection; four at most are tried."""
    many = [f"1.1.1.{number}" for number in range(1, 10)]
    web = FakeWeb({"a.example": [many]}, {SITE: Page([b"GIF89a"])})
    web.down = {"1.1.1.1", "1.1.1.2"}

    assert b"GIF89a" == await web.fetcher().fetch(SITE, ignore)
    assert many[:3] == web.dialled
    web.down = set(many)
    assert "unreachable" == await outcome(web.fetcher().fetch(SITE, ignore))
    assert many[:4] == web.dialled[3:]


async def test_an_address_in_a_url_is_not_looked_up() -> None:
    """A literal address is dialled as it is; SNI and Host have it too."""
    web = FakeWeb({}, {"https://[2606:4700::1]/": Page([b"GIF89a"])})

    assert b"GIF89a" == await web.fetcher().fetch("https://[2606:4700:0::1]/", ignore)
    assert ([], ["2606:4700::1"]) == (web.looked_up, web.dialled)
    assert "2606:4700::1" == web.requests[0].extensions["sni_hostname"]


@pytest.mark.parametrize("error", [socket.gaierror(socket.EAI_NONAME, "not known"), UnicodeError("label too long")])
async def test_a_name_that_is_not_found_is_unreachable(error: Exception) -> None:
    """An error of the resolver is a failed fetch."""

    async def unknown(name: str, port: int) -> list[str]:
        raise error

    asking = Fetcher(rules("*"), LIMITS, resolver=unknown, transport=FakeWeb({}, {}))

    assert "unreachable" == await outcome(asking.fetch(SITE, ignore))


async def test_the_operating_system_resolves() -> None:
    """The default resolver gives each address once."""
    assert ["127.0.0.1"] == await resolve("127.0.0.1", 80)


async def test_what_may_not_be_received_ends_the_fetch() -> None:
    """An exception of `receive` reaches the caller as it is, and nothing more is read."""

    def full(size: int) -> None:
        raise MemoryError

    web = FakeWeb({}, {SITE: Page([b"x"], endless=True)})
    with pytest.raises(MemoryError):
        await web.fetcher().fetch(SITE, full)

    assert [(1, True)] == [(body.read, body.closed) for body in web.bodies]


async def test_only_so_many_are_fetched_at_once() -> None:
    """Others wait until one has ended."""
    web = FakeWeb({}, {SITE: Page(hangs="header")})
    asking = web.fetcher(limits=FetchLimits(max_bytes=1, timeout_s=30, concurrency=2))
    tasks = [asyncio.create_task(asking.fetch(SITE, ignore)) for _ in range(3)]
    for _ in range(100):
        await asyncio.sleep(0)
    at_first = list(web.dialled)
    tasks[0].cancel()
    for _ in range(100):
        await asyncio.sleep(0)
    later = list(web.dialled)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

    assert ([PUBLIC] * 2, [PUBLIC] * 3) == (at_first, later)
