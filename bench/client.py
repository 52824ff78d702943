"""Compare the ways our client sends many images: a request for each image, or groups over /v1/bulk.

    python -m bench.client --images 320 --rounds 5 --out bench/results/client.json

Needs our client (`make install`). Starts `python -m service serve` on a free port of 127.0.0.1 and ends it again.
Client and server share the machine, so the server can use the CPU time that the client saves.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import platform
import statistics
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from vim_client import AsyncClient

from bench.photographs import photograph
from bench.service import server

WAYS = {"alone, 16 at once": (1, 16), "alone, 32 at once": (1, 32)} | {
    f"groups of {group}, {in_flight} at once": (group, in_flight)
    for group, in_flight in ((4, 16), (8, 16), (4, 32), (8, 32), (16, 32), (16, 64))
}
Run = tuple[float, float, float]  # images a second; milliseconds of CPU an image costs the client, and the HTTP process


def different(images: list[bytes], count: int, numbers: Iterator[int]) -> list[bytes]:
    """Images that all differ, because identical ones in flight would be computed once."""
    return [images[turn % len(images)] + next(numbers).to_bytes(8, "big") for turn in range(count)]


async def embed(url: str, images: list[bytes], group: int, in_flight: int) -> int:
    """The number of answered images."""
    async with AsyncClient(url, group=group, in_flight=in_flight) as client:
        return sum([isinstance(answer, np.ndarray) async for answer in client.embed_many(images)])


def measure(url: str, http: psutil.Process, images: list[bytes], group: int, in_flight: int) -> Run:
    """Run one way of sending once."""
    own = psutil.Process()
    before, start = (_cpu_s(own), _cpu_s(http)), time.perf_counter()
    answered = asyncio.run(embed(url, images, group, in_flight))
    seconds = time.perf_counter() - start
    assert answered == len(images)
    costs = [
        1000 * (after - earlier) / answered for after, earlier in zip((_cpu_s(own), _cpu_s(http)), before, strict=True)
    ]
    return answered / seconds, costs[0], costs[1]


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def compare(model: str, images: list[bytes], count: int, rounds: int) -> dict[str, Any]:
    """Run every way in every round; medians, and the throughput of each round."""
    runs: dict[str, list[Run]] = {way: [] for way in WAYS}
    numbers = itertools.count()
    with server(model, 32) as (url, pid, _):
        measure(url, psutil.Process(pid), different(images, 64, numbers), 8, 32)
        for _ in range(rounds):
            for way, (group, in_flight) in WAYS.items():
                batch = different(images, count, numbers)
                runs[way].append(measure(url, psutil.Process(pid), batch, group, in_flight))
    return {way: _summary(found) for way, found in runs.items()}


def _summary(runs: list[Run]) -> dict[str, Any]:
    speeds, client, http = zip(*runs, strict=True)
    return {
        "images_per_s": round(statistics.median(speeds), 1),
        "of_each_round": [round(speed, 1) for speed in speeds],
        "client_cpu_ms_per_image": round(statistics.median(client), 2),
        "http_process_cpu_ms_per_image": round(statistics.median(http), 2),
    }


def main() -> None:
    """Measure small and large photographs, print, and write the file if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--images", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", type=int, nargs=2, default=(640, 480), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    photographs = [photograph(seed, tuple(options.side)) for seed in range(8)]
    found = {
        "date": date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "model": options.model,
        "bytes_per_image": round(statistics.mean(map(len, photographs))),
        "images": options.images,
        "rounds": options.rounds,
        "ways": compare(options.model, photographs, options.images, options.rounds),
    }
    print(json.dumps(found, indent=2))
    if options.out:
        options.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
