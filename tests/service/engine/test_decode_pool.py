"""Threads work for interactive first and sometimes for bulk, and no place is lost."""

from __future__ import annotations

import asyncio
import threading

import pytest

from service.engine.decode_pool import BULK_SHARE, DecodePool, Gate
from service.errors import NotReady
from service.jobs import RequestClass

pytestmark = pytest.mark.anyio

SOON_S = 10.0


async def line_up(gate: Gate, *classes: RequestClass) -> tuple[list[int], list[asyncio.Task[None]]]:
    """Let callers of these classes wait in order; the list receives their numbers as they enter."""
    entered: list[int] = []

    async def one(number: int, request_class: RequestClass) -> None:
        await gate.enter(request_class)
        entered.append(number)

    tasks = [asyncio.create_task(one(number, request_class)) for number, request_class in enumerate(classes)]
    await asyncio.sleep(0)
    return entered, tasks


async def leave(gate: Gate, times: int) -> None:
    """Leave the gate this many times."""
    for _ in range(times):
        gate.leave()
        await asyncio.sleep(0)


async def test_no_more_enter_than_there_are_places() -> None:
    """No more callers enter than there are places, and the next enters when one leaves."""
    entered, tasks = await line_up(gate := Gate(2), "bulk", "interactive", "interactive")
    assert [0, 1] == entered
    await leave(gate, 1)

    assert [0, 1, 2] == entered
    await asyncio.gather(*tasks)


async def test_interactive_overtakes_bulk_that_waits() -> None:
    """Waiting interactive callers enter before waiting bulk callers, and each class in order."""
    entered, _ = await line_up(gate := Gate(1), "bulk", "bulk", "bulk", "interactive", "interactive")
    await leave(gate, 4)

    assert [0, 3, 4, 1, 2] == entered


async def test_bulk_gets_a_place_now_and_then() -> None:
    """While both classes wait, every BULK_SHARE-th place goes to bulk."""
    many: list[RequestClass] = ["interactive"] * 20
    entered, tasks = await line_up(gate := Gate(1), *many, "bulk", "bulk")
    await leave(gate, 2 * BULK_SHARE)

    assert [20, 21] == [number for number in entered if number >= 20]
    assert [BULK_SHARE, 2 * BULK_SHARE] == [entered.index(20), entered.index(21)]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_those_who_left_lose_no_place() -> None:
    """No place is lost when a caller is cancelled while it waits, or directly after it got a place."""
    entered, tasks = await line_up(gate := Gate(1), "interactive", "interactive", "interactive", "interactive")
    tasks[1].cancel()
    await asyncio.sleep(0)
    gate.leave()
    tasks[2].cancel()  # it has just got its place
    await asyncio.gather(tasks[1], tasks[2], return_exceptions=True)
    await asyncio.sleep(0)

    assert [0, 3] == entered
    await leave(gate, 1)
    assert [0] == (await line_up(gate, "bulk"))[0]


async def test_a_thread_runs_on_when_its_caller_leaves() -> None:
    """When the caller is cancelled, the thread keeps its place until the work has ended."""
    threads, begin, go, ended = DecodePool(1, SOON_S), threading.Event(), threading.Event(), asyncio.Event()

    def work() -> int:
        begin.set()
        return go.wait(10)

    caller = asyncio.create_task(threads.run("bulk", work, ended=ended.set))
    await asyncio.to_thread(begin.wait, 10)
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    second = asyncio.create_task(threads.run("interactive", int, "7"))
    await asyncio.sleep(0)
    assert not ended.is_set()

    go.set()
    assert 7 == await asyncio.wait_for(second, 10)
    assert ended.is_set()
    threads.close()


async def test_work_that_never_began_has_ended_too() -> None:
    """`ended` is called for work whose caller was cancelled before it began."""
    threads, go, ended = DecodePool(1, SOON_S), threading.Event(), asyncio.Event()
    first = asyncio.create_task(threads.run("bulk", go.wait, 10))
    await asyncio.sleep(0)
    second = asyncio.create_task(threads.run("bulk", int, "7", ended=ended.set))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)

    assert ended.is_set()
    go.set()
    assert await asyncio.wait_for(first, 10)
    threads.close()


async def test_closing_ends_the_threads_that_are_at_work_too() -> None:
    """After `close` a busy thread finishes its work, gives the result to its caller, and ends."""
    threads, go = DecodePool(1, SOON_S), threading.Event()

    def work() -> threading.Thread:
        go.wait(10)
        return threading.current_thread()

    caller = asyncio.create_task(threads.run("bulk", work))
    await asyncio.sleep(0)
    threads.close()
    go.set()
    thread = await asyncio.wait_for(caller, 10)
    await asyncio.to_thread(thread.join, 10)

    assert not thread.is_alive()


async def test_overdue_means_every_thread(caplog: pytest.LogCaptureFixture) -> None:
    """The pool is overdue only if every thread is; an overdue thread is logged when it ends."""
    threads, go = DecodePool(2, 0.05), threading.Event()
    first = asyncio.create_task(threads.run("bulk", go.wait, 10))
    await asyncio.sleep(0.1)
    assert not threads.overdue
    second = asyncio.create_task(threads.run("bulk", go.wait, 10))
    async with asyncio.timeout(10):
        while not threads.overdue:
            await asyncio.sleep(0.01)
    go.set()
    assert [True, True] == await asyncio.gather(first, second)

    assert not threads.overdue
    assert "longer than a request may last" in caplog.text
    threads.close()


async def test_a_thread_that_cannot_be_started_refuses_its_work_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The request is answered with 503, and the next one is served when threads can be started again."""
    pool, ended = DecodePool(1, SOON_S), asyncio.Event()

    def refused(_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        with pytest.raises(NotReady, match="no decode thread"):
            await pool.run("interactive", int, "7", ended=ended.set)
    assert ended.is_set()
    assert 7 == await pool.run("interactive", int, "7")
    pool.close()
