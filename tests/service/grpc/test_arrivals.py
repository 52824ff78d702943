"""Messages that do not arrive: each call has a time for its first one, and late ones are ended if memory is short."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from service.grpc import arrivals
from service.grpc.arrivals import FEW, Arrivals
from service.grpc.gateway import CallError

pytestmark = pytest.mark.anyio

GIB = 1 << 30


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check often, and call a message late at once."""
    monkeypatch.setattr(arrivals, "CHECK_S", 0.01)
    monkeypatch.setattr(arrivals, "LATE_S", 0.0)


class Memory:
    """Free memory that a test sets."""

    def __init__(self) -> None:
        self.free = 4 * GIB

    def __call__(self) -> int:
        return self.free


async def nothing() -> AsyncIterator[Any]:
    """The messages of a client that sends none."""
    await asyncio.Event().wait()
    yield


async def of(*messages: Any) -> AsyncIterator[Any]:
    """These messages."""
    for one in messages:
        yield one


def stream(waiting: Arrivals) -> asyncio.Task[Any]:
    """A stream that waits for a message."""

    async def read() -> None:
        async for _ in waiting.each(nothing()):
            pass

    return asyncio.create_task(read())


async def test_a_call_has_a_time_for_its_message() -> None:
    """A call whose message takes too long is ended with the setting in the text."""
    with pytest.raises(CallError, match="VIM_BODY_TIMEOUT_MS") as late:
        await Arrivals(0.02, Memory()).first(nothing())

    assert "DEADLINE_EXCEEDED" == late.value.code.name


async def test_messages_are_passed_on() -> None:
    """The messages of a stream come in their order, and a call gets its only one."""
    waiting = Arrivals(60, Memory())

    assert [0, 1, 2] == [number async for number in waiting.each(of(0, 1, 2))]
    assert "one" == await waiting.first(of("one"))
    with pytest.raises(CallError, match="no message"):
        await waiting.first(of())


async def test_late_messages_are_ended_if_memory_is_short() -> None:
    """If half of the free memory is gone while many messages are awaited, their calls and streams are ended."""
    free = Memory()
    waiting = Arrivals(60, free)
    calls = [asyncio.create_task(waiting.first(nothing())) for _ in range(FEW)]
    calls.append(stream(waiting))
    await asyncio.sleep(0.05)
    assert not any(task.done() for task in calls)

    free.free = GIB
    ended = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 10)

    assert ["RESOURCE_EXHAUSTED"] * len(calls) == [one.code.name for one in ended if isinstance(one, CallError)]


async def test_memory_is_given_back() -> None:
    """When a call has ended without its message, the freed memory is given back to the system, once."""
    trims: list[int] = []
    waiting = Arrivals(0.02, Memory(), lambda: trims.append(1))
    with pytest.raises(CallError):
        await waiting.first(nothing())
    await asyncio.sleep(0.1)
    await waiting.first(of("one"))
    await asyncio.sleep(0.1)

    assert [1] == trims


async def test_few_messages_are_never_ended_for_memory() -> None:
    """A few late messages are left alone, whatever else takes the memory."""
    free = Memory()
    waiting = Arrivals(60, free)
    calls = [stream(waiting) for _ in range(FEW)]
    free.free = 0
    await asyncio.sleep(0.1)

    assert not any(task.done() for task in calls)
    for task in calls:
        task.cancel()
