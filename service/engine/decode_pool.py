"""Where decoding and parsing run: in threads, interactive before bulk, or, if short, on the event loop itself.

The queue of an ordinary thread pool is first come, first served: behind a hundred bulk images an interactive one would
wait until all of them are decoded.
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
INLINE_S = 0.0005  # of an iteration of the event loop, in which inline work may begin; it ends a little later

T = TypeVar("T")

log = logging.getLogger("vim.threads")


@dataclass(frozen=True, slots=True)
class _Piece:
    """Some work, and how its caller receives the result."""

    work: Callable[[], Any]
    loop: asyncio.AbstractEventLoop
    settle: Callable[[Any, BaseException | None], None]


_Inbox = queue.SimpleQueue[_Piece | None]


class DecodePool:
    """Runs work that would block the event loop in `count` threads; `patience_s` is how long one piece may take.

    The threads are our own because a piece may be as short as a small image: `concurrent.futures` wakes the loop twice
    for each, takes several locks, and wakes idle threads for nothing.
    """

    def __init__(self, count: int, patience_s: float) -> None:
        self.count = count
        self.inline = InlineBudget()
        self._gate = Gate(count)
        self._patience_s = patience_s
        self._started = self._closed = False
        self._idle: list[_Inbox] = []  # one for each thread that has nothing to do
        self._since: dict[int, float] = {}  # thread -> when it began its present piece

    async def run(
        self,
        request_class: RequestClass,
        work: Callable[..., T],
        *arguments: Any,
        ended: Callable[[], None] | None = None,
    ) -> T:
        """The result of `work(*arguments)` in a thread, once its class has its turn.

        A thread cannot be interrupted: when the caller is cancelled, the work runs to its end. `ended` is called on the
        event loop when it has ended, or when the caller was cancelled before it began.
        """
        try:
            await self._gate.enter(request_class)
        except asyncio.CancelledError:
            if ended:
                ended()
            raise
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        inbox = self._idle_inbox()

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
        """Is every thread busy with one piece of work for longer than it may take?"""
        latest = time.monotonic() - self._patience_s
        began = list(self._since.values())
        return len(began) == self.count and all(one < latest for one in began)

    def close(self) -> None:
        """Start nothing more; work that runs is not waited for."""
        self._closed = True
        for inbox in self._idle:
            inbox.put(None)
        self._idle.clear()

    def _rest(self, inbox: _Inbox) -> None:
        inbox.put(None) if self._closed else self._idle.append(inbox)

    def _idle_inbox(self) -> _Inbox:
        """Of an idle thread; the gate ensures that there is one. The last one to rest has warm caches."""
        if not self._started:
            self._started = True
            self._idle = [self._start(number) for number in range(self.count)]
        return self._idle.pop()

    def _start(self, number: int) -> _Inbox:
        """A daemon thread: the process does not wait for its work when it ends."""
        inbox: _Inbox = queue.SimpleQueue()
        threading.Thread(target=self._serve, args=[inbox], name=f"decode_{number}", daemon=True).start()
        return inbox

    def _serve(self, inbox: _Inbox) -> None:
        sched_slice.restore()
        thread = threading.get_ident()
        while (piece := inbox.get()) is not None:
            result, error = None, None
            self._since[thread] = start = time.monotonic()
            try:
                result = piece.work()
            except BaseException as raised:  # raised in the caller; the thread goes on
                error = raised
            del self._since[thread]
            if (seconds := time.monotonic() - start) > self._patience_s:
                log.warning("a thread was busy with one task for %.1f s, longer than a request may last", seconds)
            with contextlib.suppress(RuntimeError):  # the loop has ended
                piece.loop.call_soon_threadsafe(piece.settle, result, error)
            del piece, result, error  # otherwise they would live until the next piece


class InlineBudget:
    """Runs short work on the event loop, in order, at most `share_s` per iteration; the rest in the next iterations.

    Handing work to a thread and its result back costs about half a millisecond, since both wait for Python's lock.
    Between two iterations the loop reads from sockets and answers probes.
    """

    def __init__(self, share_s: float = INLINE_S, clock: Callable[[], float] = time.perf_counter) -> None:
        self._share_s = share_s
        self._clock = clock
        self._spent_s = 0.0  # in this iteration
        self._counting = False
        self.waiting: deque[tuple[Callable[[], Any], asyncio.Future[Any]]] = deque()  # for the next iterations

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """The result of `work(*arguments)`: now, or in a later iteration when this one has no time left."""
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
            if done.done():  # its caller may have been cancelled
                continue
            try:
                done.set_result(self._timed(work))
            except Exception as error:  # raised in the caller
                done.set_exception(error)


class Gate:
    """A semaphore with two classes: interactive first, but bulk is not starved. Used on the event loop only."""

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
        """Give the place to the next that waits."""
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
