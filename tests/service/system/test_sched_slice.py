"""The short scheduler slice of the event loop, and the usual slice of other threads."""

from __future__ import annotations

import platform
import threading
from collections.abc import Callable
from typing import Any

import pytest

from service.engine.decode_pool import DecodePool
from service.system import sched_slice


def in_fresh_thread(work: Callable[[], Any]) -> Any:
    """The result of `work` in a new thread, so that the slice of the test's thread does not change."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def shortened() -> int | None:
    """The slice of this thread after a short one was requested."""
    sched_slice.shorten()
    return sched_slice.slice_ns()


def restored() -> int | None:
    """The slice of this thread after the usual one was restored."""
    sched_slice.restore()
    return sched_slice.slice_ns()


@pytest.fixture
def usual_ns() -> int:
    """The usual slice; skips the test where the system has no others."""
    if in_fresh_thread(shortened) != sched_slice.SHORT_NS:
        pytest.skip("this system gives threads no slices of their own (Linux before 6.12, or forbidden)")
    usual: int = in_fresh_thread(restored)
    return usual


def test_the_slice_is_the_calling_threads_alone_and_can_be_given_back(usual_ns: int) -> None:
    """`shorten` and `restore` change the slice of the calling thread and of no other."""
    mine = sched_slice.slice_ns()

    assert usual_ns > sched_slice.SHORT_NS
    assert (sched_slice.SHORT_NS, usual_ns) == in_fresh_thread(lambda: (shortened(), restored()))
    assert mine == sched_slice.slice_ns()


def test_decode_threads_have_the_usual_slice(usual_ns: int) -> None:
    """Decode threads restore the usual slice, although they inherit the short one from the event loop."""

    def loop_with_a_short_slice() -> int | None:
        import asyncio

        sched_slice.shorten()
        threads = DecodePool(1, 10.0)
        try:
            return asyncio.run(threads.run("interactive", sched_slice.slice_ns))
        finally:
            threads.close()

    assert usual_ns == in_fresh_thread(loop_with_a_short_slice)


def test_a_system_without_slices_is_asked_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """On an unknown machine no system call is made, since its number is unknown."""
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")

    assert not sched_slice.shorten()
    assert sched_slice.slice_ns() is None
