"""Closed-loop load without an HTTP library: one that costs more than the server would measure itself."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Answers:
    """What came back: bodies, and seconds from request to answer."""

    bodies: list[dict[str, Any]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    elapsed_s: float = 0.0


async def closed_loop(url: str, path: str, images: Sequence[bytes], clients: int, requests: int) -> Answers:
    """`clients` connections, each with its next request as soon as it has its answer. Raises on any other status."""
    place = urlsplit(url)
    assert place.hostname is not None
    numbers = itertools.count()  # behind each image: identical ones in flight would be computed once
    answers = Answers()

    async def one_client(share: int) -> None:
        reader, writer = await asyncio.open_connection(place.hostname, place.port)
        for turn in range(share):
            start = time.perf_counter()
            writer.write(_request(path, images[turn % len(images)] + next(numbers).to_bytes(8, "big")))
            answers.bodies.append(await _answer(reader))
            answers.seconds.append(time.perf_counter() - start)
        writer.close()

    start = time.perf_counter()
    await asyncio.gather(*(one_client(requests // clients) for _ in range(clients)))
    answers.elapsed_s = time.perf_counter() - start
    return answers


def _request(path: str, body: bytes) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def _answer(reader: asyncio.StreamReader) -> dict[str, Any]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = int(head.split("content-length:")[1].split("\r\n")[0])
    body = await reader.readexactly(length)
    if " 200 " not in head.split("\r\n")[0]:
        raise SystemExit(f"{head.splitlines()[0]}: {body.decode(errors='replace')}")
    found: dict[str, Any] = json.loads(body)
    return found
