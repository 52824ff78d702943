"""Constant load on a server, and a ledger of what came back: nothing may be lost, and nothing may be wrong."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.tiny import photo

TOLERANCE = 1e-5
Predictions = list[dict[str, Any]]


@dataclass
class Ledger:
    """Status codes, wrong answers, and connections that broke before an answer."""

    statuses: Counter[int] = field(default_factory=Counter)
    wrong: int = 0
    broken: list[str] = field(default_factory=list)
    slowest_s: float = 0.0

    def __str__(self) -> str:
        counts = ", ".join(f"{count} x {status}" for status, count in sorted(self.statuses.items()))
        return f"{counts}, {len(self.broken)} lost, {self.wrong} wrong"

    @property
    def clean(self) -> bool:
        """Every request answered 200, and rightly."""
        return set(self.statuses) <= {200} and not self.wrong and not self.broken


class Load:
    """Clients that each send their next photograph as soon as they have an answer, until told to stop."""

    def __init__(self, url: str, clients: int = 8, photographs: int = 6) -> None:
        self.ledger = Ledger()
        self._url = url
        self._clients = clients
        self._bodies = [photo(seed) for seed in range(photographs)]
        self._expected: list[Predictions] = []
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Load:
        async with self._client() as client:
            self._expected = [await _classify(client, body) for body in self._bodies]
        self._tasks = [asyncio.create_task(self._loop(number)) for number in range(self._clients)]
        return self

    def stop(self) -> None:
        """Send no further request; those under way are still awaited."""
        self._stopping = True

    async def __aexit__(self, *_: object) -> None:
        self.stop()
        await asyncio.gather(*self._tasks)

    def _client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self._url, timeout=120)

    async def _loop(self, number: int) -> None:
        async with self._client() as client:
            turn = number
            while not self._stopping:
                turn += 1
                await self._one(client, turn % len(self._bodies))

    async def _one(self, client: httpx.AsyncClient, index: int) -> None:
        start = time.monotonic()
        try:
            answer = await client.post("/v1/classify", content=self._bodies[index])
        except httpx.HTTPError as error:
            self.ledger.broken.append(repr(error))
            await asyncio.sleep(0.05)
            return
        self.ledger.slowest_s = max(self.ledger.slowest_s, time.monotonic() - start)
        self.ledger.statuses[answer.status_code] += 1
        if answer.status_code == 200 and not same(answer.json()["results"][0]["predictions"], self._expected[index]):
            self.ledger.wrong += 1


async def _classify(client: httpx.AsyncClient, body: bytes) -> Predictions:
    answer = (await client.post("/v1/classify", content=body)).raise_for_status()
    found: Predictions = answer.json()["results"][0]["predictions"]
    return found


def same(found: Predictions, expected: Predictions) -> bool:
    """Same classes, scores within 1e-5."""
    return all(
        one["index"] == other["index"] and abs(one["score"] - other["score"]) <= TOLERANCE
        for one, other in zip(found, expected, strict=True)
    )
