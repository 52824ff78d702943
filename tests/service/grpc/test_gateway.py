"""Calls that begin together, and calls that are finished before the end."""

from __future__ import annotations

import asyncio

import pytest

from service.devices.batcher import GATHERED
from service.grpc import gateway
from service.grpc.gateway import Running, Together

pytestmark = pytest.mark.anyio


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls wait for each other without a limit, so that a slow machine does not let them begin."""
    monkeypatch.setattr(gateway, "GATHERING_S", 3600)


class Calls:
    """Calls that begin together and go on until the test ends them."""

    def __init__(self) -> None:
        self.begun = 0
        self.tasks: list[asyncio.Task[None]] = []
        self._together = Together()
        self._end = asyncio.Event()

    async def arrive(self, calls: int) -> int:
        """Let calls arrive; returns how many have begun in all."""
        self.tasks += [asyncio.create_task(self._call()) for _ in range(calls)]
        for _ in range(3):
            await asyncio.sleep(0)
        return self.begun

    async def end(self) -> None:
        """End all calls."""
        self._end.set()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _call(self) -> None:
        async with self._together:
            self.begun += 1
            await self._end.wait()


async def test_few_calls_do_not_wait() -> None:
    """So many calls begin at once as a batch should have; when they have ended, so do the next ones."""
    calls = Calls()

    assert GATHERED == await calls.arrive(GATHERED)
    await calls.end()
    assert 2 * GATHERED == await calls.arrive(GATHERED)


@pytest.mark.usefixtures("patient")
async def test_calls_wait_for_a_group() -> None:
    """Beside many calls, calls wait until there are as many as a batch should have."""
    calls = Calls()
    await calls.arrive(GATHERED)

    assert GATHERED == await calls.arrive(GATHERED - 1)
    assert 2 * GATHERED == await calls.arrive(1)
    await calls.end()


async def test_calls_do_not_wait_long() -> None:
    """Without others a call begins after a short time."""
    calls = Calls()
    await calls.arrive(GATHERED + 1)
    async with asyncio.timeout(10):
        while calls.begun == GATHERED:
            await asyncio.sleep(0.001)

    assert GATHERED + 1 == calls.begun
    await calls.end()


@pytest.mark.usefixtures("patient")
async def test_a_cancelled_call_holds_up_no_other() -> None:
    """A call that is cancelled while it waits does not prevent the others from beginning."""
    calls = Calls()
    await calls.arrive(2 * GATHERED - 1)
    calls.tasks[-1].cancel()

    assert 2 * GATHERED - 1 == await calls.arrive(1)
    await calls.end()
    assert calls.tasks[2 * GATHERED - 2].cancelled()


async def test_the_end_waits_for_running_calls() -> None:
    """`idle` returns when no call is running, or when its time is over."""
    running = Running()
    await running.idle(0)
    with running, running:
        await running.idle(0.02)
        waiting = asyncio.create_task(running.idle(60))
        await asyncio.sleep(0)
        assert not waiting.done()
    await asyncio.wait_for(waiting, 10)
