"""Sends more requests than a server can answer, at a fixed rate, and records the replies."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import httpx

from tests.e2e.traffic import Client, Reply, samples

PROBES = ("/livez", "/readyz", "/metrics")


@dataclass
class Ledger:
    """Replies, the answers to probes, and the largest queue."""

    replies: list[Reply] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    probes: list[tuple[int, float]] = field(default_factory=list)  # status, seconds
    deepest: float = 0.0

    def seconds(self, status: int) -> list[float]:
        """Seconds of the replies with this status."""
        return [reply.seconds for reply in self.replies if reply.status == status]

    @property
    def retries_after_s(self) -> set[str]:
        """The values of Retry-After in refusals."""
        return {reply.headers.get("retry-after", "nothing") for reply in self.replies if reply.status == 429}


async def measured_rate(url: str, clients: int, seconds: float) -> float:
    """Images per second that the server answers when `clients` clients always wait."""
    connections = [Client(url) for _ in range(clients)]
    end = time.monotonic() + seconds

    async def one(client: Client) -> int:
        answered = 0
        while time.monotonic() < end:
            answered += (await client.post()).status == 200
        await client.close()
        return answered

    start = time.monotonic()
    answered = sum(await asyncio.gather(*map(one, connections)))
    return answered / (time.monotonic() - start)


async def overload(url: str, rate: float, seconds: float) -> Ledger:
    """Send `rate` evenly spaced requests a second that do not wait for each other; record probes and the queue."""
    ledger, idle = Ledger(), [Client(url)]
    done = asyncio.Event()
    watching = asyncio.create_task(_watch(url, ledger, done))
    start, sent, tasks = time.monotonic(), 0, set()
    while (elapsed := time.monotonic() - start) < seconds:
        for _ in range(int(elapsed * rate) - sent):
            tasks.add(asyncio.create_task(_one(url, idle, ledger)))
            sent += 1
        await asyncio.sleep(0.005)
    await asyncio.gather(*tasks)
    done.set()
    await watching
    await asyncio.gather(*(client.close() for client in idle))
    return ledger


async def _one(url: str, idle: list[Client], ledger: Ledger) -> None:
    client = idle.pop() if idle else Client(url)
    try:
        ledger.replies.append(await client.post())
    except (OSError, asyncio.IncompleteReadError) as error:
        ledger.broken.append(repr(error))
        return
    idle.append(client)


async def _watch(url: str, ledger: Ledger, done: asyncio.Event) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=60) as probe:
        while not done.is_set():
            for path in PROBES:
                start = time.monotonic()
                status = (await probe.get(path)).status_code
                ledger.probes.append((status, time.monotonic() - start))
            depth = sum(value for name, value in (await samples(probe)).items() if name.startswith("vim_queue_depth"))
            ledger.deepest = max(ledger.deepest, depth)
            await asyncio.sleep(0.1)
