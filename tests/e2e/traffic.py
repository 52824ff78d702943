"""Requests with little cost for the sender, so that it can send more than the server can answer.

Every image differs from every other: identical ones in flight need not be computed twice.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

from tests.tiny import photo

_PHOTO = photo()
_NUMBERS = itertools.count()


def another_photo() -> bytes:
    """The same picture in different bytes: bytes after the end of a JPEG are ignored."""
    return _PHOTO + next(_NUMBERS).to_bytes(8, "big")


@dataclass(frozen=True)
class Reply:
    """An answer, and how long it took."""

    status: int
    seconds: float
    headers: dict[str, str] = field(repr=False)
    body: Any = field(repr=False)


class Client:
    """A client with one connection that is kept alive."""

    def __init__(self, url: str) -> None:
        place = urlsplit(url)
        self._address = place.hostname, place.port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str = "/v1/classify", body: bytes | None = None, **headers: str) -> Reply:
        """Classify these bytes, or an image that was not sent before; header names have underscores for hyphens."""
        start = time.monotonic()
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._address)
        reader, writer = self._streams
        body = another_photo() if body is None else body
        lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        head = [f"POST {path} HTTP/1.1", "Host: vim", f"Content-Length: {len(body)}", *lines]
        writer.write("\r\n".join([*head, "", ""]).encode() + body)
        return await _read(reader, start)

    async def close(self) -> None:
        """Close the connection to the server."""
        if self._streams is not None:
            self._streams[1].close()
            await asyncio.gather(self._streams[1].wait_closed(), return_exceptions=True)
            self._streams = None


async def _read(reader: asyncio.StreamReader, start: float) -> Reply:
    status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    body = await reader.readexactly(int(headers["content-length"]))
    return Reply(int(status.split()[1]), time.monotonic() - start, headers, json.loads(body))


class Bulk:
    """Clients of class bulk that each send their next image as soon as they have an answer."""

    def __init__(self, url: str, clients: int) -> None:
        self.replies: list[Reply] = []
        self._clients = [Client(url) for _ in range(clients)]
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Bulk:
        self._tasks = [asyncio.create_task(self._loop(client)) for client in self._clients]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping = True
        await asyncio.gather(*self._tasks)

    async def _loop(self, client: Client) -> None:
        while not self._stopping:
            self.replies.append(await client.post(X_Request_Class="bulk"))
            if self.replies[-1].status != 200:
                await asyncio.sleep(0.05)
        await client.close()


async def samples(probe: httpx.AsyncClient) -> dict[str, float]:
    """All of /metrics, by name with labels."""
    page = (await probe.get("/metrics")).text
    return {name: float(value) for name, value in re.findall(r"^([^#]\S*(?: \S*})?) (\S+)$", page, re.MULTILINE)}


def percentile(seconds: list[float], percent: float) -> float:
    """The smallest value that this percentage of the values does not exceed."""
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else 0.0
