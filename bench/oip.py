"""`python -m bench.oip`: throughput of the Open Inference Protocol over gRPC, divided by that over HTTP.

    python -m bench.oip --model models/demo --clients 64 --kilobytes 12 --rounds 10

All are measured in turns against one server, with tritonclient's asynchronous clients: calls over HTTP and gRPC,
and gRPC streams. It needs `pip install 'tritonclient[http]'` beside the extra `grpc`.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import numpy as np

from bench.photographs import photograph
from bench.serve.processes import free_port
from bench.service import server

MODEL = "bench"  # the name that `server` gives it
SIDES = {12: (240, 180), 100: (840, 630)}  # of photographs with so many kilobytes
WARM_UP_S, WINDOW_S = 1.5, 2.5

Way = Callable[[float], Awaitable[int]]  # sends for so many seconds; the number of answers


def images(kilobytes: int) -> Iterator[bytes]:
    """Photographs that all differ in their last bytes, so that none is computed together with another."""
    files = [photograph(seed, SIDES[kilobytes]) for seed in range(20)]
    return (file + number.to_bytes(8, "little") for number, file in enumerate(itertools.cycle(files)))


def request(library: Any, bodies: Iterator[bytes]) -> dict[str, Any]:
    """The arguments of a request for the five best classes of the next image."""
    tensor = library.InferInput("image", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[next(bodies)]], dtype=object))
    return {
        "model_name": MODEL,
        "inputs": [tensor],
        "outputs": [library.InferRequestedOutput("scores", class_count=5)],
    }


def calls(library: Any, client: Any, bodies: Iterator[bytes], clients: int) -> Way:
    """So many clients that each wait for their answer before they send again."""

    async def one(end: float) -> int:
        answers = 0
        while time.monotonic() < end:
            await client.infer(**request(library, bodies))
            answers += 1
        return answers

    async def run(seconds: float) -> int:
        end = time.monotonic() + seconds
        return sum(await asyncio.gather(*(one(end) for _ in range(clients))))

    return run


def streams(library: Any, client: Any, bodies: Iterator[bytes], clients: int) -> Way:
    """Streams with eight requests in flight each; together as many as there are clients."""

    async def one(end: float) -> int:
        room, answers = asyncio.Semaphore(8), 0

        async def requests() -> AsyncIterator[dict[str, Any]]:
            while time.monotonic() < end:
                await room.acquire()
                yield request(library, bodies)

        async for _, error in client.stream_infer(requests()):
            assert error is None, error
            answers += 1
            room.release()
        return answers

    async def run(seconds: float) -> int:
        end = time.monotonic() + seconds
        return sum(await asyncio.gather(*(one(end) for _ in range(max(1, clients // 8)))))

    return run


async def measure(http: str, grpc: str, kilobytes: int, clients: int, rounds: int) -> None:
    """Print the images per second of all ways, and their ratios to HTTP in the same round."""
    import tritonclient.grpc.aio as over_grpc
    import tritonclient.http.aio as over_http

    bodies = images(kilobytes)
    async with (
        over_http.InferenceServerClient(http, conn_limit=clients) as one,
        over_grpc.InferenceServerClient(grpc) as other,
    ):
        ways = {
            "http": calls(over_http, one, bodies, clients),
            "grpc": calls(over_grpc, other, bodies, clients),
            "grpc streams": streams(over_grpc, other, bodies, clients),
        }
        for way in ways.values():
            await way(WARM_UP_S)
        found: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(rounds):
            for name in list(ways) if number % 2 else reversed(ways):
                start = time.monotonic()
                answers = await ways[name](WINDOW_S)
                found[name].append(answers / (time.monotonic() - start))
    for name, rates in found.items():
        ratios = sorted(rate / base for rate, base in zip(rates, found["http"], strict=True))
        print(
            f"{name}: {statistics.median(rates):.0f} images/s, {statistics.median(ratios):.2f} of HTTP's "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m bench.oip", description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="demo", help="its name, or a folder or file with weights")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--kilobytes", type=int, choices=sorted(SIDES), default=12, help="size of the images")
    parser.add_argument("--rounds", type=int, default=10)
    given = parser.parse_args()
    os.environ["VIM_GRPC_PORT"] = port = str(free_port())
    with server(given.model, 8) as (url, _, _):
        address = url.removeprefix("http://")
        asyncio.run(measure(address, f"127.0.0.1:{port}", given.kilobytes, given.clients, given.rounds))


if __name__ == "__main__":
    main()
