"""Closed-loop load without an HTTP library, which could take more CPU time than the server."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from bench.serve.wire import connect, post


@dataclass
class Latencies:
    """Seconds from request to answer of each request, and seconds of the whole run."""

    seconds: list[float] = field(default_factory=list)
    elapsed_s: float = 0.0


async def closed_loop(url: str, path: str, images: Sequence[bytes], clients: int, requests: int) -> Latencies:
    """`clients` connections, each with its next request as soon as it has its answer.

    Raises ExceptionGroup if one is answered with another status than 200.
    """
    port = urlsplit(url).port
    assert port is not None
    numbers = itertools.count()  # bytes after each image, because identical images in flight are computed once
    found = Latencies()

    async def one_client(share: int) -> None:
        connection = await connect(port)
        try:
            for turn in range(share):
                image, number = images[turn % len(images)], next(numbers).to_bytes(8, "big")
                start = time.perf_counter()
                status = await connection.ask([post(path, len(image) + len(number)), image, number])
                found.seconds.append(time.perf_counter() - start)
                if status != 200:
                    raise RuntimeError(f"{status}: {connection.body.decode(errors='replace')}")
        finally:
            connection.close()

    start = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(one_client(requests // clients))
    found.elapsed_s = time.perf_counter() - start
    return found
