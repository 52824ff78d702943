"""Short work on the event loop itself: so much of it in each of the loop's turns, the rest in the next ones.

A thread is handed its work and hands the result back, and both wait for Python's lock: for work of half a millisecond
that costs more than the work. Between two turns the loop reads what has arrived and answers probes, so nobody waits
for more than one turn's share. What is short, others decide.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

SHARE_S = 0.0005  # of a turn, in which work may begin; what has begun ends a little later

T = TypeVar("T")


class Turns:
    """Runs short work in the order in which it came."""

    def __init__(self, share_s: float = SHARE_S, clock: Callable[[], float] = time.perf_counter) -> None:
        self._share_s = share_s
        self._clock = clock
        self._spent_s = 0.0  # in this turn
        self._counting = False
        self._waiting: deque[tuple[Callable[[], Any], asyncio.Future[Any]]] = deque()

    @property
    def busy(self) -> bool:
        """Is there work for the next turns?"""
        return bool(self._waiting)

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """The result of `work(*arguments)`: now, or when this turn has no time left, in one of the next."""
        if not self._waiting and self._spent_s < self._share_s:
            return self._timed(lambda: work(*arguments))
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append((lambda: work(*arguments), done))
        return await done

    def _timed(self, work: Callable[[], T]) -> T:
        if not self._counting:
            self._counting = True
            asyncio.get_running_loop().call_soon(self._next_turn)
        start = self._clock()
        try:
            return work()
        finally:
            self._spent_s += self._clock() - start

    def _next_turn(self) -> None:
        self._counting, self._spent_s = False, 0.0
        while self._waiting and self._spent_s < self._share_s:
            work, done = self._waiting.popleft()
            if not done.done():  # its caller may have left
                self._settle(work, done)

    def _settle(self, work: Callable[[], Any], done: asyncio.Future[Any]) -> None:
        try:
            done.set_result(self._timed(work))
        except Exception as error:  # the caller's, whatever it is
            done.set_exception(error)
