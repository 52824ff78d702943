"""Decoding threads wait for memory in order, and return what they reserved."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from service.errors import DeadlineExceeded
from service.images.memory_budget import MemoryBudget

SOON_S = 10.0


class Holders:
    """Threads that hold memory until the event `go` is set."""

    def __init__(self, budget: MemoryBudget) -> None:
        self.order: list[str] = []
        self.go = threading.Event()
        self._budget = budget
        self._pool = ThreadPoolExecutor(4)

    def hold(self, name: str, size: int) -> Future[None]:
        """Start a thread that reserves `size` bytes."""

        def work() -> None:
            with self._budget.reserve(size):
                self.order.append(name)
                self.go.wait(SOON_S)

        return self._pool.submit(work)


def until(condition: Callable[[], bool]) -> None:
    """Wait until another thread makes the condition true."""
    deadline = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_memory_is_waited_for() -> None:
    """Of 100 bytes, 60 and 40 are reserved at once; another 60 have to wait."""
    threads = Holders(MemoryBudget(100, SOON_S))
    work = [threads.hold("first", 60), threads.hold("second", 40)]
    until(lambda: {"first", "second"} == set(threads.order))
    work.append(threads.hold("third", 60))
    time.sleep(0.05)
    assert 2 == len(threads.order)
    threads.go.set()
    for one in work:
        one.result(SOON_S)

    assert "third" == threads.order[-1]


def test_memory_comes_back_after_an_error() -> None:
    """An error inside the context returns the memory, so that all of it can be reserved again."""
    budget = MemoryBudget(100, 0.05)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), budget.reserve(100):
            raise ZeroDivisionError


def test_a_small_image_does_not_overtake_a_large_one() -> None:
    """Reservations are served in order: on a busy server a large one would otherwise wait for ever."""
    budget = MemoryBudget(100, SOON_S)
    threads = Holders(budget)
    work = [threads.hold("running", 50)]
    until(lambda: ["running"] == threads.order)
    work.append(threads.hold("large", 100))
    until(lambda: budget.contended)
    work.append(threads.hold("small", 10))
    time.sleep(0.05)
    assert ["running"] == threads.order
    threads.go.set()
    for one in work:
        one.result(SOON_S)

    assert ["running", "large", "small"] == threads.order


@pytest.mark.parametrize("waiting", [1, 3])
def test_waiting_ends_with_the_requests_time(waiting: int) -> None:
    """Threads that wait longer than the time-out get DeadlineExceeded, the first in line and those behind it."""
    budget = MemoryBudget(100, 0.05)
    with budget.reserve(100), ThreadPoolExecutor(waiting) as pool:
        for late in [pool.submit(lambda: budget.reserve(1).__enter__()) for _ in range(waiting)]:
            with pytest.raises(DeadlineExceeded, match="VIM_MAX_DECODE_BYTES"):
                late.result(SOON_S)
