"""/v1/bulk over a real connection, both ways at once: answers while lines are still sent, slow readers, sudden ends."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.api.native.bulk import IN_FLIGHT
from tests.e2e.mixture import differences
from tests.e2e.raw import memory_mb, until
from tests.e2e.server import Server, serving
from tests.tiny import photo

PHOTOS = [photo(seed) for seed in range(3)]
DEPTH, ANSWERED = 'vim_queue_depth{class="bulk"}', 'vim_images_total{class="bulk",model="tiny",op="embed"}'


class Stream:
    """One request to /v1/bulk on a connection of its own, chunk by chunk."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self._reader = reader
        self._numbers = iter(range(1_000_000))

    async def send(self, *, name: object = None) -> None:
        """Send the next image as a chunk; waits while the server does not read."""
        number = next(self._numbers)
        image = PHOTOS[number % 3] + number.to_bytes(8)  # identical ones would be computed once
        self._chunk(json.dumps({"id": name, "image": base64.b64encode(image).decode()}).encode() + b"\n")
        await self.writer.drain()

    def end(self) -> None:
        """Send the end of the body."""
        self._chunk(b"")

    def _chunk(self, data: bytes) -> None:
        self.writer.write(b"%x\r\n%b\r\n" % (len(data), data))

    async def head(self) -> int:
        """Wait for the header of the answer; returns the status."""
        return int((await self._reader.readuntil(b"\r\n\r\n")).split()[1])

    async def line(self) -> dict[str, Any] | None:
        """The next answer; None at the regular end of the stream."""
        size = int(await self._reader.readuntil(b"\r\n"), 16)
        data = (await self._reader.readexactly(size + 2))[:-2]
        found: dict[str, Any] | None = json.loads(data) if data else None
        return found

    async def rest(self) -> list[dict[str, Any]]:
        """All remaining answers."""
        found = []
        while (line := await self.line()) is not None:
            found.append(line)
        return found


@contextlib.asynccontextmanager
async def stream(server: Server, query: str = "") -> AsyncIterator[Stream]:
    """An open request whose header was sent; the connection is always closed at the end."""
    host, port = server.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=2**22)
    writer.write(f"POST /v1/bulk{query} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
    try:
        async with asyncio.timeout(240):
            yield Stream(reader, writer)
    finally:
        writer.transport.abort()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[Server]:
    """The server of all tests here that do not damage it."""
    with serving(tmp_path_factory.mktemp("bulk"), model=tiny, watchdog_ms=600_000) as server:
        yield server


def native(server: Server) -> list[dict[str, Any]]:
    """The answers of single requests for the three photographs."""
    posts = [httpx.post(f"{server.url}/v1/embed", content=one, timeout=120).json() for one in PHOTOS]
    return [post["results"][0] for post in posts]


def test_answers_come_while_images_are_still_being_sent(server: Server) -> None:
    """A client that sends each image only after the answer to the previous one gets all answers."""

    async def scenario() -> list[Any]:
        async with stream(server) as bulk:
            found = []
            for number in range(3 * IN_FLIGHT):
                await bulk.send(name=number)
                if not number:
                    assert 200 == await bulk.head()
                found.append(await bulk.line())
            bulk.end()
            assert [] == await bulk.rest()
            return found

    found, expected = asyncio.run(scenario()), native(server)

    for number, line in enumerate(found):
        assert (number, number) == (line["id"], line["index"])
        assert [] == list(differences(line["embedding"], expected[number % 3]["embedding"]))


def test_who_reads_slowly_is_not_read_from_either(server: Server) -> None:
    """While a client does not read answers, the server does not read its images; none is lost when it reads again."""
    name, count = "x" * 200_000, 200  # each answer has the id of its line: 40 MB in total

    async def send_all(bulk: Stream, sent: list[int]) -> None:
        for number in range(count):
            await bulk.send(name=[number, name])
            sent.append(number)
        bulk.end()

    async def scenario() -> tuple[int, float, list[dict[str, Any]]]:
        before = memory_mb(server)
        async with stream(server) as bulk:
            sent: list[int] = []
            sender = asyncio.create_task(send_all(bulk, sent))
            assert 200 == await bulk.head()
            bulk.writer.transport.pause_reading()  # type: ignore[attr-defined]
            while len(sent) < IN_FLIGHT:
                await asyncio.sleep(0.05)
            seen = -1
            while seen != len(sent):  # until the server reads no more
                seen = len(sent)
                await asyncio.sleep(1)
            grown = memory_mb(server) - before
            bulk.writer.transport.resume_reading()  # type: ignore[attr-defined]
            found = await bulk.rest()
            await sender
            return seen, grown, found

    seen, grown, found = asyncio.run(scenario())

    assert seen < count
    assert grown < 40
    assert [(number, [number, name]) for number in range(count)] == [(one["index"], one["id"]) for one in found]
    assert all("embedding" in one for one in found)


def test_a_sender_that_vanishes_leaves_nothing_behind(server: Server) -> None:
    """When a client disconnects in the middle of a line, its waiting images are dropped."""

    async def scenario() -> None:
        async with stream(server) as bulk:
            for _ in range(IN_FLIGHT // 2):
                await bulk.send()
            bulk.writer.write(b'fffff\r\n{"image": "')
            assert 200 == await bulk.head()
            assert await asyncio.to_thread(until, lambda: server.metric(DEPTH) == IN_FLIGHT // 2)

    before = server.metric(ANSWERED)
    server.signal_device(signal.SIGSTOP)
    try:
        asyncio.run(scenario())
        gone = until(lambda: '"client_gone"' in server.log)
    finally:
        server.signal_device(signal.SIGCONT)

    assert gone
    assert until(lambda: server.metric(DEPTH) == 0)
    assert before == server.metric(ANSWERED)
    assert 3 == len(native(server))


def test_the_death_of_the_device_process_costs_a_stream_nothing(server: Server) -> None:
    """When the device process dies, the images of a stream run again and none is lost."""

    async def scenario() -> list[dict[str, Any]]:
        async with stream(server) as bulk:
            for number in range(60):
                if number == 20:
                    server.signal_device(signal.SIGKILL)
                await bulk.send(name=number)
            bulk.end()
            assert 200 == await bulk.head()
            return await bulk.rest()

    found, expected = asyncio.run(scenario()), native(server)

    assert list(range(60)) == [line["id"] for line in found]
    assert [] == [line for line in found if [*differences(line["embedding"], expected[line["id"] % 3]["embedding"])]]


@pytest.mark.parametrize("endless", [pytest.param(False, marks=pytest.mark.slow), True])
def test_sigterm_ends_a_stream_properly(tmp_path: Path, tiny: Path, endless: bool) -> None:
    """After SIGTERM sent lines are answered; lines after the drain time get an error until the client stops."""
    told = asyncio.Event()

    async def keep_sending(bulk: Stream) -> None:
        for _ in range(1_000_000 if endless else 20):
            if told.is_set():
                break
            await bulk.send()
            await asyncio.sleep(0.05)
        bulk.end()

    async def scenario(server: Server) -> list[dict[str, Any]]:
        async with stream(server) as bulk:
            await bulk.send()
            assert 200 == await bulk.head()
            server.signal(signal.SIGTERM)
            sender, found = asyncio.create_task(keep_sending(bulk)), []
            while (line := await bulk.line()) is not None:
                found.append(line)
                if "error" in line:
                    told.set()
            await sender
            return found

    with serving(tmp_path, model=tiny, drain_timeout_ms=2000 if endless else 60_000) as server:
        found = asyncio.run(scenario(server))

        assert 0 == server.exit_status()
        assert list(range(len(found))) == [line["index"] for line in found]
        refused = [line["error"]["code"] for line in found if "error" in line]
        assert ({"draining"} if endless else set()) == set(refused)
        assert endless or len(found) == 21
        assert "Traceback" not in server.log
