"""Measure how long the event loop delays other requests while large photographs are decoded.

    python -m bench.lag --out bench/results/lag.json

A probe, a process of its own, asks `/livez` every few milliseconds, first alone, then while clients send photographs of
50 megapixels one after the other. The route does no work, so the additional time is the lag of the loop and the wait
for a CPU.
"""

from __future__ import annotations

import argparse
import gc
import http.client
import io
import json
import multiprocessing
import os
import platform
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from bench.photographs import photograph
from bench.service import server

SIDES = (8660, 5774)  # 50 megapixels
EVERY_S = 0.005
LATE_MS = 20


def large_photograph() -> bytes:
    """A JPEG with the size and the noise of a camera's: one noisy tile, repeated."""
    with Image.open(io.BytesIO(photograph(0, (1024, 1024)))) as image:
        tile = np.asarray(image)
    repeats = [-(-side // 1024) for side in SIDES]
    pixels = np.tile(tile, (repeats[1], repeats[0], 1))[: SIDES[1], : SIDES[0]]
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "JPEG", quality=90)
    return encoded.getvalue()


def probe(url: str, seconds: float) -> list[float]:
    """Milliseconds until each answer of `/livez`, over one connection."""
    gc.disable()  # the probe's own pauses, up to 18 ms, must not count as lag of the loop
    connection = http.client.HTTPConnection(urlsplit(url).netloc)
    times, end = [], time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        connection.request("GET", "/livez")
        connection.getresponse().read()
        times.append(1000 * (time.perf_counter() - start))
        time.sleep(EVERY_S)
    connection.close()
    return times


@contextmanager
def busy(url: str, body: bytes, clients: int) -> Iterator[list[int]]:
    """Clients send the photograph until the context ends; the list collects the statuses of the answers."""
    statuses: list[int] = []
    stop = threading.Event()

    def one_client(number: int) -> None:
        connection = http.client.HTTPConnection(urlsplit(url).netloc)
        turn = 0
        while not stop.is_set():  # different bytes after the end, because identical images in flight are decoded once
            _post(connection, body, f"{number} {turn}".encode())
            answer = connection.getresponse()
            answer.read()
            statuses.append(answer.status)
            turn += 1
        connection.close()

    threads = [threading.Thread(target=one_client, args=[number]) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield statuses
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _post(connection: http.client.HTTPConnection, body: bytes, tail: bytes) -> None:
    connection.putrequest("POST", "/v1/classify")
    connection.putheader("Content-Length", str(len(body) + len(tail)))
    connection.endheaders()
    connection.send(body)
    connection.send(tail)


def summary(times: list[float]) -> dict[str, float]:
    """Count, percentiles and maximum in milliseconds, and the number of late answers."""
    ordered = sorted(times)
    return {
        "probes": len(ordered),
        "p50_ms": round(statistics.median(ordered), 2),
        "p99_ms": round(ordered[int(0.99 * (len(ordered) - 1))], 2),
        "p99.9_ms": round(ordered[int(0.999 * (len(ordered) - 1))], 2),
        f"over_{LATE_MS}_ms": sum(time > LATE_MS for time in ordered),
        "largest_ms": round(ordered[-1], 2),
    }


def measure(source: str, clients: int, seconds: float) -> dict[str, Any]:
    """Measure the probe alone, and beside the clients."""
    body = large_photograph()
    context = multiprocessing.get_context("spawn")
    with server(source, max_batch=8) as (url, _, _), ProcessPoolExecutor(1, context) as prober:
        prober.submit(probe, url, 0.1).result()
        alone = prober.submit(probe, url, seconds / 2).result()
        with busy(url, body, clients) as statuses:
            time.sleep(0.5)
            beside = prober.submit(probe, url, seconds).result()
    return {
        "body_bytes": len(body),
        "clients": clients,
        "answers": {str(status): statuses.count(status) for status in sorted(set(statuses))},
        "alone": summary(alone),
        "while_decoding": summary(beside),
    }


def main() -> None:
    """Measure, print, and write JSON when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    machine = f"{os.cpu_count()} cores, {platform.machine()}, load {os.getloadavg()[0]:.1f} before"
    found = measure(options.model, options.clients, options.seconds)
    result = {"date": date.today().isoformat(), "machine": machine, "model": options.model} | found
    print(json.dumps(result, indent=2))
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
