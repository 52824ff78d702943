"""The lines of `make chaos` about hostile clients: bombs, damaged files, idle and vanishing connections, a soak."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial

import httpx
import numpy as np

from tests.e2e import raw
from tests.e2e.bench import Bench, Line
from tests.e2e.hostile import ATTACKS, assault, bad_requests, mutated
from tests.e2e.interleaved import TOLERANCE, interleave, pillow_images
from tests.e2e.server import Server
from tests.e2e.traffic import Client, Reply
from tests.tiny import photo

MUTATED, VANISHING, IDLE, SOAK = 5000, 1000, 500, 50_000
BAD_SHARE = 20  # one of this many requests of the soak is bad
CLIENTS = 16
QUICK_S = 5.0


@contextmanager
def held(server: Server, count: int) -> Iterator[list[socket.socket]]:
    """Open `count` connections; every other one sends half a header."""
    connections: list[socket.socket] = []
    try:
        for turn in range(count):
            connections.append(raw.connect(server))
            if turn % 2:
                connections[-1].sendall(b"POST /v1/classify HTTP/1.1\r\nHost")
        yield connections
    finally:
        for connection in connections:
            connection.close()


def scores(server: Server) -> object:
    """The answer to one photograph."""
    return httpx.post(f"{server.url}/v1/classify?top_k=7", content=photo(), timeout=120).json()["results"]


async def bombs(bench: Bench) -> Line:
    """Send every attack, one after the other."""
    with bench.server("bombs") as server, server.client() as client:
        scores(server)
        before = raw.memory_mb(server)
        found = {attack.name: assault(client, attack) for attack in ATTACKS}
        grown = raw.memory_mb(server) - before
    wrong = [attack.name for attack in ATTACKS if found[attack.name][0] not in attack.codes]
    slowest, seconds = max(((name, seconds) for name, (_, seconds) in found.items()), key=lambda one: one[1])
    says = (
        f"{len(ATTACKS) - len(wrong)} of {len(ATTACKS)} answered as they must be; slowest {seconds:.1f} s ({slowest}); "
    )
    return Line("bombs", not wrong and seconds < QUICK_S and grown < 150, says + f"memory {grown:+.0f} MB")


async def interleaved(bench: Bench, name: str, files: Callable[[], list[bytes]]) -> Line:
    """Send bad files, each followed by a good one: one by one, then by several clients at once."""
    bad = await asyncio.to_thread(files)
    with bench.server("alone", max_batch=1) as server:
        before = raw.memory_mb(server)
        alone = await interleave(server.url, bad, clients=1)
        grown = raw.memory_mb(server) - before
    with bench.server("together") as server:
        together = await interleave(server.url, bad, clients=8)
    statuses = set(alone.bad) | set(together.bad)
    held = max(statuses) < 500 and not alone.failed and not together.failed and not alone.changed
    held = held and together.apart <= TOLERANCE
    says = f"alone: {alone}; together: {together}; memory {grown:+.0f} MB"
    return Line(f"{len(bad)} {name}, a good file after each", held, says)


async def idle(bench: Bench) -> Line:
    """Open idle connections and half headers, and measure the answers to others meanwhile."""
    with bench.server("idle") as server:
        scores(server)
        before = raw.descriptors(server)
        with held(server, IDLE):
            raw.until(lambda: raw.descriptors(server) - before >= IDLE, within_s=5)  # accepting them takes some time
            during, start = raw.descriptors(server) - before, time.monotonic()
            served = [scores(server) is not None for _ in range(20)]
            seconds = time.monotonic() - start
            freed = raw.until(lambda: raw.descriptors(server) <= before + 2, within_s=60)
        after = raw.descriptors(server) - before
    says = f"{during} descriptors held; 20 answers meanwhile in {seconds:.1f} s; {after:+d} once their time was over"
    return Line(f"{IDLE} idle connections", all(served) and freed and during > IDLE // 2, says)


async def vanishing(bench: Bench) -> Line:
    """Run clients that leave in the header, in the body or before the answer."""
    body = photo()
    with bench.server("vanishing") as server:
        expected = scores(server)
        before, memory = raw.descriptors(server), raw.memory_mb(server)
        sent = raw.post("/v1/classify", length=len(body)) + body
        for turn in range(VANISHING):
            with raw.connect(server) as connection:
                connection.sendall(sent[: (20, 200, len(sent))[turn % 3]])
        freed = raw.until(lambda: raw.descriptors(server) <= before + 2)
        grown, same = raw.memory_mb(server) - memory, _close(expected, scores(server))
    says = f"descriptors {'all freed' if freed else 'not freed'}; memory {grown:+.0f} MB; the next answer is the same"
    return Line(f"{VANISHING} clients that vanish", freed and same and grown < 50, says)


async def soak(bench: Bench) -> Line:
    """Send good and some bad requests for long; compare memory and descriptors after warm-up."""
    statuses: Counter[int] = Counter()
    samples: list[tuple[int, float, int]] = []
    turns = iter(range(SOAK))
    start = time.monotonic()
    with bench.server("soak") as server:

        async def one_client() -> None:
            client = Client(server.url)
            for turn in turns:
                statuses[(await _one(client, turn)).status] += 1
                if turn % (SOAK // 100) == 0:
                    samples.append((turn, raw.memory_mb(server), raw.descriptors(server)))
            await client.close()

        await asyncio.gather(*(one_client() for _ in range(CLIENTS)))
    minutes = (time.monotonic() - start) / 60
    steady = [sample for sample in samples if sample[0] >= SOAK // 5]
    slope = 10_000 * float(np.polyfit([one[0] for one in steady], [one[1] for one in steady], 1)[0])
    spread = max(one[2] for one in steady) - min(one[2] for one in steady)
    counts = ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items()))
    says = (
        f"{counts}, in {minutes:.0f} min; memory {steady[0][1]:.0f} MB after the first fifth, {steady[-1][1]:.0f} MB "
        f"at the end, {slope:+.2f} MB in 10,000 requests; descriptors within {spread}"
    )
    return Line(f"{SOAK} requests, 5 % bad", max(statuses) < 500 and abs(slope) < 2 and spread <= 2 * CLIENTS, says)


async def _one(client: Client, turn: int) -> Reply:
    if turn % BAD_SHARE == BAD_SHARE - 1:
        body, headers = random.choice(_BAD)
        return await client.post(body=body, **headers)
    return await client.post(body=_GOOD[turn % len(_GOOD)])


def _close(one: object, other: object) -> bool:
    """Whether classes are equal and scores within 1e-5, since batches may differ."""

    def values(results: object) -> list[float]:
        return [item["score"] for item in results[0]["predictions"]]  # type: ignore[index]

    return bool(np.allclose(values(one), values(other), atol=1e-5))


_GOOD = [photo(seed) for seed in range(8)]
_BAD = bad_requests()

EDGE: dict[str, Callable[[Bench], Coroutine[None, None, Line]]] = {
    "bombs": bombs,
    "mutations": partial(interleaved, name="mutated files", files=partial(mutated, MUTATED)),
    "pillow": partial(interleaved, name="test images of Pillow", files=partial(pillow_images, fetch=True)),
    "idle": idle,
    "vanishing": vanishing,
    "soak": soak,
}
