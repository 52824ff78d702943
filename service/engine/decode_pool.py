"""The threads that decode and parse, and who may use one next: interactive before bulk.

A pool's own queue is first come, first served: behind a hundred bulk images an interactive one would wait until all of
them are decoded.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from service.jobs import RequestClass
from service.system import sched_slice

BULK_SHARE = 8  # of so many places that are given while both classes wait, bulk gets one

T = TypeVar("T")

log = logging.getLogger("vim.threads")


def _nothing() -> None:
    """Nobody has to be told."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """Some work, and how its caller hears of it."""

    work: Callable[[], Any]
    loop: asyncio.AbstractEventLoop
    settle: Callable[[Any, BaseException | None], None]


_Inbox = queue.SimpleQueue[_Piece | None]


class Threads:
    """Runs work that would block the event loop, so many pieces at once; `patience_s` is how long one may take.

    Threads of our own, because a piece may be as short as a small image: `concurrent.futures` wakes the loop twice for
    each, takes several locks, and wakes idle threads for nothing, all of them after the same interpreter lock.
    """

    def __init__(self, count: int, patience_s: float) -> None:
        self._gate = Gate(count)
        self._count = count
        self._patience_s = patience_s
        self._started = self._closed = False
        self._idle: list[_Inbox] = []  # one for each thread that has nothing to do
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
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        inbox = self._idle_inbox()

        def settle(result: Any, error: BaseException | None) -> None:
            self._rest(inbox)
            self._gate.leave()
            ended()
            if not done.done():
                done.set_result(result) if error is None else done.set_exception(error)

        inbox.put(_Piece(lambda: work(*arguments), done.get_loop(), settle))
        return await done

    @property
    def overdue(self) -> bool:
        """Is every thread at one piece of work for longer than it may take?"""
        latest = time.monotonic() - self._patience_s
        began = list(self._since.values())
        return len(began) == self._count and all(one < latest for one in began)

    def close(self) -> None:
        """Start nothing more; what runs is not waited for."""
        self._closed = True
        for inbox in self._idle:
            inbox.put(None)
        self._idle.clear()

    def _rest(self, inbox: _Inbox) -> None:
        inbox.put(None) if self._closed else self._idle.append(inbox)

    def _idle_inbox(self) -> _Inbox:
        """Of a thread with nothing to do; the gate has seen to it that there is one. The last one's caches are warm."""
        if not self._started:
            self._started = True
            self._idle = [self._start(number) for number in range(self._count)]
        return self._idle.pop()

    def _start(self, number: int) -> _Inbox:
        """A daemon: the process does not wait for an image that nobody waits for."""
        inbox: _Inbox = queue.SimpleQueue()
        threading.Thread(target=self._serve, args=[inbox], name=f"decode_{number}", daemon=True).start()
        return inbox

    def _serve(self, inbox: _Inbox) -> None:
        sched_slice.restore()
        while (piece := inbox.get()) is not None:
            result, error = self._timed(piece.work)
            with contextlib.suppress(RuntimeError):  # the loop has ended
                piece.loop.call_soon_threadsafe(piece.settle, result, error)
            del piece, result, error  # or they would live until the next one comes

    def _timed(self, work: Callable[[], Any]) -> tuple[Any, BaseException | None]:
        thread, start = threading.get_ident(), time.monotonic()
        self._since[thread] = start
        try:
            return work(), None
        except BaseException as error:  # the caller's, whatever it is; the thread goes on
            return None, error
        finally:
            del self._since[thread]
            if (seconds := time.monotonic() - start) > self._patience_s:
                log.warning("a thread was busy with one task for %.1f s, longer than a request may last", seconds)


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
        for line in self._waiting.values():
            while line and line[0].done():
                line.popleft()
        interactive, bulk = self._waiting["interactive"], self._waiting["bulk"]
        if not (interactive or bulk):
            self._free += 1
        elif bulk and (not interactive or self._passed >= BULK_SHARE - 1):
            self._passed = 0
            bulk.popleft().set_result(None)
        else:
            self._passed += bool(bulk)
            interactive.popleft().set_result(None)
