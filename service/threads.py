"""The threads that decode and parse, and who may use one next: interactive before bulk.

A pool's own queue is first come, first served: behind a hundred bulk images an interactive one would wait until all of
them are decoded.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from service.jobs import RequestClass

BULK_SHARE = 8  # of so many places that are given while both classes wait, bulk gets one

T = TypeVar("T")

log = logging.getLogger("vim.threads")


def _nothing() -> None:
    """Nobody has to be told."""


class Threads:
    """Runs work that would block the event loop, so many pieces at once; `patience_s` is how long one may take."""

    def __init__(self, count: int, patience_s: float) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="decode")
        self._gate = Gate(count)
        self._count = count
        self._patience_s = patience_s
        self._since: dict[int, float] = {}  # thread -> when it began what it does now

    async def run(
        self, request_class: RequestClass, work: Callable[..., T], *arguments: Any, ended: Callable[[], None] = _nothing
    ) -> T:
        """The result of `work(*arguments)` in a thread, once the class has its turn.

        A thread cannot be interrupted: when the caller leaves, it runs on. `ended` is called when it has ended, or at
        once if the caller left before it began.
        """
        try:
            await self._gate.enter(request_class)
        except asyncio.CancelledError:
            ended()
            raise
        running = self._pool.submit(self._timed, work, *arguments)

        def settle() -> None:
            self._gate.leave()
            ended()

        loop = asyncio.get_running_loop()
        running.add_done_callback(lambda _: loop.call_soon_threadsafe(settle))
        return await asyncio.wrap_future(running)

    @property
    def overdue(self) -> bool:
        """Is every thread at one piece of work for longer than it may take?"""
        latest = time.monotonic() - self._patience_s
        began = list(self._since.values())
        return len(began) == self._count and all(one < latest for one in began)

    def _timed(self, work: Callable[..., T], *arguments: Any) -> T:
        thread, start = threading.get_ident(), time.monotonic()
        self._since[thread] = start
        try:
            return work(*arguments)
        finally:
            del self._since[thread]
            if (seconds := time.monotonic() - start) > self._patience_s:
                log.warning("a thread was busy with one task for %.1f s, longer than a request may last", seconds)

    def close(self) -> None:
        """Start nothing more; what runs is not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class Gate:
    """`enter` waits for one of so many places; `leave` gives it to the next. Both on the event loop."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: dict[RequestClass, deque[asyncio.Future[None]]] = {"interactive": deque(), "bulk": deque()}
        self._passed = 0  # interactive places given in a row while bulk waited

    async def enter(self, request_class: RequestClass) -> None:
        """Wait for a place."""
        if self._free:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting[request_class].append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # the place was given while its taker left
                self.leave()
            raise

    def leave(self) -> None:
        """Give the place to whoever is next."""
        for queue in self._waiting.values():
            while queue and queue[0].done():
                queue.popleft()
        interactive, bulk = self._waiting["interactive"], self._waiting["bulk"]
        if not (interactive or bulk):
            self._free += 1
        elif bulk and (not interactive or self._passed >= BULK_SHARE - 1):
            self._passed = 0
            bulk.popleft().set_result(None)
        else:
            self._passed += bool(bulk)
            interactive.popleft().set_result(None)
