"""Constant load on a server, and a count of its answers: none may be lost or wrong."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.e2e.mixture import Call, content_of, differences, mixture

PATIENCE_S = 120


@dataclass
class Ledger:
    """Counts of requests: with the expected status, another status, a wrong answer, or none."""

    sent: int = 0
    good: int = 0  # 200, and the answer of the undisturbed run
    refused: int = 0  # bad requests that were answered with the expected error
    unexpected: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)  # unexpected answers: status and code
    wrong: list[str] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)  # id of the request -> what happened to its connection
    turned_away: int = 0  # no connection, because no server listens
    statuses: Counter[int] = field(default_factory=Counter)
    slowest_s: float = 0.0
    gap_s: float = 0.0  # longest time in which no client got a good answer
    _last: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.sent} sent: {self.good} x 200, {self.refused} refused as due, {self.lost} lost, "
            f"{len(self.wrong)} wrong"
        )

    @property
    def lost(self) -> int:
        """Requests without the expected answer: with none, or with another status."""
        return len(self.broken) + self.turned_away + len(self.unexpected)

    @property
    def clean(self) -> bool:
        """Whether every request got the expected status and answer."""
        return not self.lost and not self.wrong and self.sent == self.good + self.refused

    @property
    def complaints(self) -> str:
        """The first few errors, for people."""
        return "; ".join([*self.unexpected, *self.wrong, *self.broken.values()][:5])

    def answered(self, call: Call, answer: httpx.Response, expected: Any, seconds: float) -> None:
        """Count an answer, and compare it with the expected one."""
        self.statuses[answer.status_code] += 1
        self.slowest_s = max(self.slowest_s, seconds)
        if answer.status_code != call.status:
            self.unexpected.append(f"{call.name}: {answer.status_code} {answer.text[:200]}")
            self.others[f"{answer.status_code} {code_of(answer)}"] += 1
        elif found := next(differences(content_of(answer), expected), None):
            self.wrong.append(f"{call.name}: {found}")
        elif call.status != 200:
            self.refused += 1
        else:
            self.good += 1
            self._tick()

    def _tick(self) -> None:
        now = time.monotonic()
        self.gap_s = max(self.gap_s, now - (self._last or now))
        self._last = now


def code_of(answer: httpx.Response) -> str:
    """The kind of an error."""
    body = answer.json() if "json" in answer.headers.get("content-type", "") else {}
    return str(body.get("code", "no code"))


async def undisturbed(url: str, calls: Sequence[Call]) -> dict[str, Any]:
    """The answers of an undisturbed server to each call, by name."""
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as client:
        answers = {call.name: await _post(client, call) for call in calls}
    assert {call.name: call.status for call in calls} == {name: one.status_code for name, one in answers.items()}
    return {name: content_of(answer) for name, answer in answers.items()}


class Load:
    """Clients that each send their next request as soon as they have an answer, until told to stop.

    Half of them keep their connections. `expected` are the answers of an undisturbed server; by default those of this
    server.
    """

    def __init__(self, url: str, clients: int = 8, expected: dict[str, Any] | None = None) -> None:
        self.ledger = Ledger()
        self._url = url
        self._clients = clients
        self._calls = mixture()
        self._expected = expected
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        self._ids = itertools.count()

    async def __aenter__(self) -> Load:
        if self._expected is None:
            self._expected = await undisturbed(self._url, self._calls)
        self._tasks = [asyncio.create_task(self._loop(number)) for number in range(self._clients)]
        return self

    def stop(self) -> None:
        """Send no more requests, and wait for those in flight."""
        self._stopping = True

    async def __aexit__(self, *_: object) -> None:
        self.stop()
        await asyncio.gather(*self._tasks)

    async def _loop(self, number: int) -> None:
        order = random.Random(number)
        kept = {} if number % 2 else {"Connection": "close"}
        async with httpx.AsyncClient(base_url=self._url, timeout=PATIENCE_S, headers=kept) as client:
            while not self._stopping:
                await self._one(client, order.choice(self._calls))

    async def _one(self, client: httpx.AsyncClient, call: Call) -> None:
        name = f"load-{next(self._ids)}"
        start = time.monotonic()
        self.ledger.sent += 1
        try:
            answer = await _post(client, call, name)
        except httpx.ConnectError:
            self.ledger.turned_away += 1
            await asyncio.sleep(0.5)
        except httpx.HTTPError as error:
            self.ledger.broken[name] = f"{call.name}: {error!r}"
            await asyncio.sleep(0.05)
        else:
            assert self._expected is not None
            self.ledger.answered(call, answer, self._expected[call.name], time.monotonic() - start)


async def _post(client: httpx.AsyncClient, call: Call, request_id: str = "undisturbed") -> httpx.Response:
    headers = call.headers | {"X-Request-ID": request_id}
    return await client.post(call.path, content=call.content, headers=headers)


async def endless_upload(url: str) -> httpx.Response:
    """Send a body that never ends; returns the answer."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n\xff\xd8\xff")
    status, *_ = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    body = await reader.read()
    writer.close()
    return httpx.Response(int(status.split()[1]), content=body)
