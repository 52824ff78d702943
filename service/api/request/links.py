"""Replaces links with the images that they lead to, for all contracts: limits, deadline, memory, metrics and log.

`service.fetch` fetches. A client gets one error for all causes, because their differences would show it hosts and ports
that only this server can reach. The log has the reason, without the URL's path and query, which may hold a signature.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from service.engine.admission import BodyAccount
from service.engine.engine import Engine
from service.errors import DeadlineExceeded, FetchFailed, ServiceError, TooManyImages, UrlNotSupported, bare
from service.fetch import hosts
from service.fetch.outcome import FetchError, Outcome
from service.images.formats import sniff
from service.jobs import Given, Item, Link, Task
from service.settings import Settings
from service.status import ModelState

if TYPE_CHECKING:
    from service.fetch.fetcher import Fetcher

log = logging.getLogger("vim.fetch")

FAILED = "the image could not be fetched from its URL; the server's log has the reason under this request's id"
OFF = "URLs are not fetched unless VIM_FETCH_HOSTS is set on the server; send the image's bytes, base64 or a data URI"


def make_fetcher(settings: Settings) -> Fetcher | None:
    """The fetcher of the settings; None if VIM_FETCH_HOSTS is unset."""
    if not settings.fetch_hosts:
        return None
    from service.fetch.fetcher import Fetcher, FetchLimits  # httpx is loaded only where it is used

    limits = FetchLimits(settings.fetch_max_bytes, settings.fetch_timeout_ms / 1000, settings.fetch_concurrency)
    return Fetcher(hosts.rules(settings.fetch_hosts), limits)


class Links:
    """Fetches the links of requests. Without a fetcher every link is an error."""

    def __init__(self, engine: Engine, fetcher: Fetcher | None) -> None:
        self._engine = engine
        self._fetcher = fetcher

    async def close(self) -> None:
        """Close the connections."""
        if self._fetcher:
            await self._fetcher.close()

    async def images(
        self,
        given: Sequence[Given],
        task: Task,
        state: ModelState,
        deadline: float,
        account: BodyAccount,
        request_id: str,
    ) -> list[Item]:
        """The images of a request; a link that cannot be fetched becomes an error in its place.

        `deadline` is on the monotonic clock. The bytes are counted in `account` until the caller closes it. Raises
        what `Engine.check` raises, TooManyImages, DeadlineExceeded, and MemoryFull or BodyTooLarge without room.
        """
        urls = list(dict.fromkeys(one.url for one in given if isinstance(one, Link)))
        found: dict[str, Item] = {}
        if urls and self._fetcher is None:
            found = dict.fromkeys(urls, UrlNotSupported(OFF))
        elif urls and self._fetcher:
            self._engine.check(task, state)
            self._check_count(len(urls))
            try:
                async with asyncio.timeout_at(deadline):
                    found = await self._fetch_all(self._fetcher, urls, account, request_id)
            except TimeoutError:
                raise DeadlineExceeded("the URLs were not fetched within the time that the request allows") from None
        return [found[one.url] if isinstance(one, Link) else one for one in given]

    def _check_count(self, urls: int) -> None:
        limit = self._engine.settings.fetch_max_urls
        if urls > limit:
            raise TooManyImages(f"{urls} different URLs in one request; the limit is {limit} (VIM_FETCH_MAX_URLS)")

    async def _fetch_all(
        self, fetcher: Fetcher, urls: Sequence[str], account: BodyAccount, request_id: str
    ) -> dict[str, Item]:
        refusals: list[BaseException] = []
        try:
            async with asyncio.TaskGroup() as group:
                tasks = {url: group.create_task(self._fetch(fetcher, url, account, request_id)) for url in urls}
        except* ServiceError as refused:  # no room for the bytes: the others are cancelled
            refusals += refused.exceptions
        if refusals:
            raise bare(refusals[0])
        return {url: task.result() for url, task in tasks.items()}

    async def _fetch(self, fetcher: Fetcher, url: str, account: BodyAccount, request_id: str) -> Item:
        outcome: Outcome = "given_up"
        start, received = time.monotonic(), 0

        def receive(size: int) -> None:
            nonlocal received
            account.receive(size)
            received += size

        try:
            data = await fetcher.fetch(url, receive)
            if sniff(data) is None:
                raise FetchError("not_an_image", "the bytes are not an image of a known format")
            outcome = "ok"
        except FetchError as error:
            outcome = error.outcome
            fields = {"request_id": request_id, "host": hosts.shown(url), "outcome": outcome, "reason": error.reason}
            log.info("fetch failed", extra={"fields": fields})
            return FetchFailed(FAILED)
        finally:
            self._engine.metrics.fetched(outcome, time.monotonic() - start)
            if outcome != "ok":
                account.release(received)
        return data
