"""Runs decoding and parsing in threads, interactive before bulk, or on the event loop if the work is short.

An ordinary thread pool has one queue in order of arrival: an interactive image would wait until a hundred bulk images
before it are decoded.
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

from service.errors import NotReady
from service.jobs import RequestClass
from service.system import sched_slice

BULK_SHARE = 8  # while both classes wait, bulk gets one of this many places
INLINE_S = 0.0005  # per iteration of the event loop; inline work begins within this time and may end a little later

T = TypeVar("T")

log = logging.getLogger("vim.threads")


@dataclass(frozen=True, slots=True)
class _Piece:
    """One piece of work, and the function that receives its result."""

    work: Callable[[], Any]
    loop: asyncio.AbstractEventLoop
    settle: Callable[[Any, BaseException | None], None]


_Inbox = queue.SimpleQueue[_Piece | None]


class DecodePool:
    """Runs blocking work in `count` threads. A piece of work that takes longer than `patience_s` is overdue.

    It does not use `concurrent.futures`, which is slow for short work such as a small image: it wakes the loop twice,
    takes several locks, and wakes idle threads without need.
    """

    def __init__(self, count: int, patience_s: float) -> None:
        self.count = count
        self.busy: dict[int, float] = {}  # thread -> when it began its current piece of work
        self.inline = InlineBudget()
        self._gate = Gate(count)
        self._patience_s = patience_s
        self._started = 0
        self._closed = False
        self._idle: list[_Inbox] = []  # one for each thread that has nothing to do

    async def run(
        self,
        request_class: RequestClass,
        work: Callable[..., T],
        *arguments: Any,
        ended: Callable[[], None] | None = None,
    ) -> T:
        """Run `work(*arguments)` in a thread when it is the turn of its class; return the result.

        A thread cannot be interrupted: when the caller is cancelled, the work runs to its end. `ended` is called on the
        event loop when it has ended, or when the caller was cancelled before it began.
        """
        try:
            await self._gate.enter(request_class)
        except asyncio.CancelledError:
            if ended:
                ended()
            raise
        try:
            inbox = self._idle_inbox()
        except RuntimeError as error:
            self._gate.leave()
            if ended:
                ended()
            raise NotReady("no decode thread can be started now", retry_after_s=1) from error
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def settle(result: Any, error: BaseException | None) -> None:
            self._rest(inbox)
            self._gate.leave()
            if ended:
                ended()
            if not done.done():
                done.set_result(result) if error is None else done.set_exception(error)

        inbox.put(_Piece(lambda: work(*arguments), done.get_loop(), settle))
        return await done

    @property
    def overdue(self) -> bool:
        """Return whether every thread has been busy with one piece of work for longer than `patience_s`."""
        latest = time.monotonic() - self._patience_s
        began = list(self.busy.values())
        return len(began) == self.count and all(one < latest for one in began)

    def close(self) -> None:
        """Start no more work; do not wait for running work."""
        self._closed = True
        for inbox in self._idle:
            inbox.put(None)
        self._idle.clear()

    def _rest(self, inbox: _Inbox) -> None:
        inbox.put(None) if self._closed else self._idle.append(inbox)

    def _idle_inbox(self) -> _Inbox:
        """The inbox of an idle thread; the gate ensures that there is one. The one used last has warm caches."""
        if self._idle:
            return self._idle.pop()
        inbox = self._start(self._started)
        self._started += 1
        return inbox

    def _start(self, number: int) -> _Inbox:
        """Start a daemon thread: the process does not wait for its work at the end. Raises RuntimeError."""
        inbox: _Inbox = queue.SimpleQueue()
        threading.Thread(target=self._serve, args=[inbox], name=f"decode_{number}", daemon=True).start()
        return inbox

    def _serve(self, inbox: _Inbox) -> None:
        sched_slice.restore()
        thread = threading.get_ident()
        while (piece := inbox.get()) is not None:
            result, error = None, None
            self.busy[thread] = start = time.monotonic()
            try:
                result = piece.work()
            except BaseException as raised:  # raised again in the caller; the thread continues
                error = raised
            del self.busy[thread]
            if (seconds := time.monotonic() - start) > self._patience_s:
                log.warning("a thread worked on one item for %.1f s, longer than a request may last", seconds)
            with contextlib.suppress(RuntimeError):  # the loop has ended
                piece.loop.call_soon_threadsafe(piece.settle, result, error)
            del piece, result, error  # otherwise they would stay in memory until the next piece


class InlineBudget:
    """Runs short work on the event loop, in order, at most `share_s` per iteration; the rest in the next iterations.

    Using a thread costs about half a millisecond, because both sides wait for Python's lock. Between two iterations the
    loop reads from sockets and answers probes.
    """

    def __init__(self, share_s: float = INLINE_S, clock: Callable[[], float] = time.perf_counter) -> None:
        self._share_s = share_s
        self._clock = clock
        self._spent_s = 0.0  # in this iteration
        self._counting = False
        self.waiting: deque[tuple[Callable[[], Any], asyncio.Future[Any]]] = deque()  # for the next iterations

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """Run `work(*arguments)` now, or in a later iteration if this one has no time left; return the result."""
        if not self.waiting and self._spent_s < self._share_s:
            return self._timed(lambda: work(*arguments))
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.waiting.append((lambda: work(*arguments), done))
        return await done

    def _timed(self, work: Callable[[], T]) -> T:
        if not self._counting:
            self._counting = True
            asyncio.get_running_loop().call_soon(self._next_iteration)
        start = self._clock()
        try:
            return work()
        finally:
            self._spent_s += self._clock() - start

    def _next_iteration(self) -> None:
        self._counting, self._spent_s = False, 0.0
        while self.waiting and self._spent_s < self._share_s:
            work, done = self.waiting.popleft()
            if done.done():  # the caller was cancelled
                continue
            try:
                done.set_result(self._timed(work))
            except Exception as error:  # raised in the caller
                done.set_exception(error)


class Gate:
    """A semaphore with two classes: interactive first, but bulk gets some places. For use on the event loop only."""

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
            if turn.done() and not turn.cancelled():  # the place was given while the caller was cancelled
                self.leave()
            raise

    def leave(self) -> None:
        """Give the place to the next caller that waits."""
        for turns in self._waiting.values():
            while turns and turns[0].done():
                turns.popleft()
        interactive, bulk = self._waiting["interactive"], self._waiting["bulk"]
        if not (interactive or bulk):
            self._free += 1
        elif bulk and (not interactive or self._passed >= BULK_SHARE - 1):
            self._passed = 0
            bulk.popleft().set_result(None)
        else:
            self._passed += bool(bulk)
            interactive.popleft().set_result(None)
