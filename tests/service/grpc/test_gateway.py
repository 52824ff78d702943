"""Calls that begin together, and the requests that the application receives."""

from __future__ import annotations

import asyncio

import pytest

from service.devices.batcher import GATHERED
from service.grpc.gateway import Together

pytestmark = pytest.mark.anyio


async def begun(together: Together, running: int, calls: int) -> list[asyncio.Task[None]]:
    """Let calls arrive, and let those begin that need not wait."""
    tasks = [asyncio.create_task(together.begin(running)) for _ in range(calls)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return tasks


async def test_few_calls_do_not_wait() -> None:
    """With few requests each call begins at once."""
    assert all(task.done() for task in await begun(Together(), 0, 3))


async def test_calls_wait_for_a_group() -> None:
    """Beside many requests, calls wait until there are as many as a batch should have."""
    together = Together()
    first = await begun(together, GATHERED, GATHERED - 1)
    assert not any(task.done() for task in first)

    (last,) = await begun(together, GATHERED, 1)
    assert all(task.done() for task in [*first, last])


async def test_calls_do_not_wait_long() -> None:
    """Without others a call begins after a short time."""
    (task,) = await begun(Together(), GATHERED, 1)

    await asyncio.wait_for(task, 10)


async def test_a_cancelled_call_holds_up_no_other() -> None:
    """A call that is cancelled while it waits does not prevent the others from beginning."""
    together = Together()
    gone, *others = await begun(together, GATHERED, GATHERED - 1)
    gone.cancel()

    await begun(together, GATHERED, 1)

    assert gone.cancelled()
    assert all(task.done() for task in others)
