"""Decoding threads wait for memory in order, and return what they reserved."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from service.errors import DeadlineExceeded
from service.images.memory_budget import MemoryBudget
from service.system import shared_counts

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
    [since] = shared_counts.alone()
    threads = Holders(MemoryBudget(100, SOON_S, since=since))
    work = [threads.hold("running", 50)]
    until(lambda: ["running"] == threads.order)
    work.append(threads.hold("large", 100))
    until(lambda: since.own[0] > 0)
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


class Processes:
    """Budgets of several HTTP processes that share 100 bytes, by number."""

    def __init__(self, count: int) -> None:
        descriptor = shared_counts.memory(count, 2)
        self.counts = [shared_counts.mapped(descriptor, count, 2, own) for own in range(count)]
        self.threads = [Holders(MemoryBudget(100, SOON_S, *counts)) for counts in self.counts]
        os.close(descriptor)


def test_several_processes_share_the_memory() -> None:
    """What one process has reserved, another has to wait for, and gets when it is returned."""
    processes = Processes(2)
    one, two = processes.threads
    work = [one.hold("first", 60)]
    until(lambda: ["first"] == one.order)
    work.append(two.hold("second", 60))
    time.sleep(0.05)
    assert [] == two.order
    one.go.set()
    until(lambda: ["second"] == two.order)
    two.go.set()
    for done in work:
        done.result(SOON_S)

    assert [[0, 0], [0, 0]] == [list(count.parts) for count in processes.counts[0]]


def test_a_large_image_is_not_overtaken_in_another_process() -> None:
    """The process that waits longest reserves first, although a small image of another one would fit."""
    processes = Processes(3)
    running, large, small = processes.threads
    work = [running.hold("running", 50)]
    until(lambda: ["running"] == running.order)
    work.append(large.hold("large", 100))
    until(lambda: processes.counts[1][1].own[0] > 0)
    work.append(small.hold("small", 10))
    time.sleep(0.05)
    assert [] == small.order
    running.go.set()
    until(lambda: ["large"] == large.order)
    assert [] == small.order
    large.go.set()
    small.go.set()
    for done in work:
        done.result(SOON_S)

    assert ["small"] == small.order


def test_the_memory_of_a_process_that_was_killed_is_free_again() -> None:
    """The parent sets the counts of a dead process to 0, also if it was first in line."""
    processes = Processes(2)
    dead, alive = processes.counts
    dead[0].own[0] = 100
    dead[1].own[0] = 1
    work = processes.threads[1].hold("late", 100)
    until(lambda: alive[1].own[0] > 0)
    time.sleep(0.05)
    assert [] == processes.threads[1].order
    dead[0].own[0] = 0
    dead[1].own[0] = 0
    processes.threads[1].go.set()
    work.result(SOON_S)

    assert ["late"] == processes.threads[1].order
