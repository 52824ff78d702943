"""The threads that decode and parse, and who may use one next: interactive before bulk.

A pool's own queue is first come, first served: behind a hundred bulk images an interactive one would wait until all of
them are decoded.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from service.jobs import RequestClass

BULK_SHARE = 8  # of so many places that are given while both classes wait, bulk gets one

T = TypeVar("T")


def _nothing() -> None:
    """Nobody has to be told."""


class Threads:
    """Runs work that would block the event loop, so many pieces at once."""

    def __init__(self, count: int) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="decode")
        self._gate = Gate(count)

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
        running = self._pool.submit(work, *arguments)

        def settle() -> None:
            self._gate.leave()
            ended()

        loop = asyncio.get_running_loop()
        running.add_done_callback(lambda _: loop.call_soon_threadsafe(settle))
        return await asyncio.wrap_future(running)

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
