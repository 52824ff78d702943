"""A web without a network: names with addresses, pages behind URLs, and a record of what was looked up and dialled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import httpx2

from service.fetch.fetcher import Fetcher, FetchLimits
from service.fetch.hosts import rules

PUBLIC = "93.184.215.14"
LIMITS = FetchLimits(max_bytes=1000, timeout_s=30, concurrency=4)
SHORT = FetchLimits(max_bytes=1000, timeout_s=0.05, concurrency=4)


@dataclass(frozen=True)
class Page:
    """What a URL answers: a status, headers, and pieces of a body; `hangs` says before what it waits for ever."""

    body: Sequence[bytes] = ()
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    hangs: str = ""  # "header" or "end"
    endless: bool = False  # the pieces are sent again and again


def redirect(location: str, status: int = 302) -> Page:
    """A page that leads to another."""
    return Page([b"elsewhere"], status, {"Location": location})


class Body(httpx2.AsyncByteStream):
    """The pieces of a page; counts those that were read."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self.read = 0
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces():
            self.read += 1
            yield piece
        if self._page.hangs == "end":
            await asyncio.Event().wait()

    def _pieces(self) -> Iterator[bytes]:
        yield from self._page.body
        while self._page.endless:
            yield from self._page.body

    async def aclose(self) -> None:
        self.closed = True


class FakeWeb(httpx2.AsyncBaseTransport):
    """Pages by URL, as the Host header and the path name them; addresses by name, a new list for each look-up."""

    def __init__(self, names: Mapping[str, Sequence[Sequence[str]]], pages: Mapping[str, Page]) -> None:
        self._names = {name: list(answers) for name, answers in names.items()}
        self._pages = pages
        self.looked_up: list[str] = []
        self.dialled: list[str] = []
        self.requests: list[httpx2.Request] = []
        self.bodies: list[Body] = []
        self.down: set[str] = set()  # addresses that accept no connection

    async def resolve(self, name: str, port: int) -> Sequence[str]:
        """The addresses of a name; the last ones again when there are no others."""
        self.looked_up.append(name)
        answers = self._names.get(name, [[PUBLIC]])
        return answers.pop(0) if len(answers) > 1 else answers[0]

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Answer a request that was sent to an address."""
        self.dialled.append(request.url.host)
        if request.url.host in self.down:
            raise httpx2.ConnectError("refused")
        self.requests.append(request)
        name = f"{request.url.scheme}://{request.headers['Host']}{request.url.raw_path.decode()}"
        page = self._pages.get(name, Page([b"no such page"], 404))
        if page.hangs == "header":
            await asyncio.Event().wait()
        self.bodies.append(Body(page))
        return httpx2.Response(page.status, headers=dict(page.headers), stream=self.bodies[-1])

    def fetcher(self, hosts: str = "*", limits: FetchLimits = LIMITS) -> Fetcher:
        """A fetcher whose network this is. The addresses that are public are the real ones."""
        return Fetcher(rules(hosts), limits, resolver=self.resolve, transport=self)
