"""Memory for decoding is shared in turn, and comes back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from service.errors import DeadlineExceeded
from service.images.memory_budget import Room

SOON_S = 10.0


class Holders:
    """Threads that hold memory until they are told to go."""

    def __init__(self, room: Room) -> None:
        self.order: list[str] = []
        self.go = threading.Event()
        self._room = room
        self._pool = ThreadPoolExecutor(4)

    def hold(self, name: str, size: int) -> Future[None]:
        """A thread that takes so many bytes."""

        def work() -> None:
            with self._room.hold(size):
                self.order.append(name)
                self.go.wait(SOON_S)

        return self._pool.submit(work)


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that another thread does."""
    deadline = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_memory_is_waited_for() -> None:
    """60 and 60 of 100 bytes do not fit together, 60 and 40 do."""
    threads = Holders(Room(100, SOON_S))
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
    """All of it can be taken again."""
    room = Room(100, 0.05)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), room.hold(100):
            raise ZeroDivisionError


def test_a_small_image_does_not_overtake_a_large_one() -> None:
    """First come, first served: the large one would wait for ever on a busy server."""
    room = Room(100, SOON_S)
    threads = Holders(room)
    work = [threads.hold("running", 50)]
    until(lambda: ["running"] == threads.order)
    work.append(threads.hold("large", 100))
    until(room._turn.locked)
    work.append(threads.hold("small", 10))
    time.sleep(0.05)
    assert ["running"] == threads.order
    threads.go.set()
    for one in work:
        one.result(SOON_S)

    assert ["running", "large", "small"] == threads.order


@pytest.mark.parametrize("waiting", [1, 3])
def test_waiting_ends_with_the_requests_time(waiting: int) -> None:
    """504: the request is over by then, and the thread is needed. Also for those behind the first."""
    room = Room(100, 0.05)
    with room.hold(100), ThreadPoolExecutor(waiting) as pool:
        for late in [pool.submit(lambda: room.hold(1).__enter__()) for _ in range(waiting)]:
            with pytest.raises(DeadlineExceeded, match="VIM_MAX_DECODE_BYTES"):
                late.result(SOON_S)
