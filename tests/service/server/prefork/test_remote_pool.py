"""What an HTTP process has instead of a fleet: the parent is played by the test."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from dataclasses import field as member
from typing import Any

import numpy as np
import pytest

from service.devices.messages import Begin, Landed, Listening, Loaded, Order, Orders, Row, ToHttp, Told
from service.devices.slots import Lease
from service.errors import InferenceFailed, NotReady
from service.ipc import Connection
from service.jobs import Job, RequestClass, Result, Task
from service.server.prefork.remote_pool import Outpost
from service.telemetry.shared_counters import Tally

pytestmark = pytest.mark.anyio

SLOTS, FIRST, SIZE = 4, 4, 2
READY = Told("ready", "", True, {"dtype": "float32"}, 8, 0.25, 0, False)


@dataclass
class Parent:
    """The other end."""

    outpost: Outpost
    link: Link
    heard: list[Any] = member(default_factory=list)

    async def says(self, *messages: ToHttp) -> None:
        """Until they have arrived."""
        for message in messages:
            self.link.say(message)
        await settle()

    async def orders(self) -> list[Orders]:
        """What it was sent for the queue."""
        await settle()
        return [one for one in self.heard if isinstance(one, Orders)]


async def settle() -> None:
    """Let what is on its way arrive."""
    await asyncio.sleep(0.02)


@pytest.fixture
async def parent(anyio_backend: object) -> AsyncIterator[Parent]:
    """An outpost with slots 4 to 7 of eight, whose model is loaded."""
    ours, theirs = socket.socketpair()
    memory = os.memfd_create("test")
    os.ftruncate(memory, (2 * SLOTS + 1) * SIZE * SIZE * 3)
    begin = Begin("{}", "http-2", 1, (), "", 7)
    outpost = Outpost(begin, Lease(memory, FIRST, 2 * SLOTS + 1), SLOTS, 2, Tally.of_one(1), theirs)
    task = asyncio.create_task(outpost.run())
    heard: list[Any] = []
    link = await Connection.open(ours, heard.append)
    parent = Parent(outpost, link, heard)
    await parent.says(Loaded(SIZE, {}, (), {}), READY)
    yield parent
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await outpost.close()
    link.close()
    os.close(memory)


def queue(outpost: Outpost, request_class: RequestClass = "interactive") -> Job:
    """A job in a slot of its own, as the engine makes it."""
    [slot] = outpost.arena.acquire(1, request_class)
    future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
    job = Job(slot, Task("embed"), 1.0, future, request_class)
    outpost.queue.put(job)
    return job


async def test_jobs_travel_by_the_slot_of_the_whole_arena_and_together(parent: Parent) -> None:
    """One message for all of a turn of the event loop; pixels are where the parent expects them."""
    first, second = queue(parent.outpost), queue(parent.outpost)
    parent.outpost.arena.pixels.slot(first.slot)[...] = 9

    orders = await parent.orders()

    named = tuple(Order(FIRST + job.slot, Task("embed"), 1.0, "interactive") for job in (first, second))
    assert [Orders(new=named)] == orders
    descriptor = parent.outpost.arena.descriptor
    assert bytes([9]) == os.pread(descriptor, 1, (FIRST + first.slot) * SIZE * SIZE * 3)


async def test_while_more_are_about_to_come_jobs_gather(parent: Parent) -> None:
    """As for a device: several at once cost as much as one; but not for long."""
    parent.outpost.queue.more = lambda: True
    first = queue(parent.outpost)
    await asyncio.sleep(0)
    second = queue(parent.outpost)

    orders = await parent.orders()

    assert [[FIRST + first.slot, FIRST + second.slot]] == [[one.slot for one in each.new] for each in orders]


async def test_a_slot_is_free_when_the_request_and_the_parent_have_let_go(parent: Parent) -> None:
    """Whichever is later."""
    job = queue(parent.outpost)
    slot = FIRST + job.slot

    await parent.says(Landed((Row(slot, np.array([1, 2], np.float32).tobytes(), 0.5, 0.25, 3),), (), ()))
    result = await job.done
    parent.outpost.arena.release(job.slot)
    assert 1 == parent.outpost.arena.in_use
    await parent.says(Landed((), (), (slot,)))

    assert 0 == parent.outpost.arena.in_use
    assert ([1, 2], 0.5, 0.25, 3) == (result.values.tolist(), result.queue_s, result.infer_s, result.batch_size)
    assert 1.5 == job.began_at


async def test_an_error_reaches_whoever_waits(parent: Parent) -> None:
    """With its code."""
    job = queue(parent.outpost)

    await parent.says(Landed((), ((FIRST + job.slot, InferenceFailed("it failed")),), (FIRST + job.slot,)))

    with pytest.raises(InferenceFailed, match="it failed"):
        await job.done


async def test_slots_of_an_earlier_process_are_not_ours_to_free(parent: Parent) -> None:
    """Its images may still come off a device."""
    await parent.says(Landed((), (), (FIRST, FIRST + 1)))

    assert 0 == parent.outpost.arena.in_use
    assert SLOTS == len(parent.outpost.arena.acquire(SLOTS))


async def test_what_nobody_waits_for_is_dropped_once(parent: Parent) -> None:
    """And a bulk job that an interactive request has joined is hurried."""
    dropped, hurried = queue(parent.outpost), queue(parent.outpost, "bulk")
    await parent.orders()

    assert parent.outpost.queue.discard(dropped)
    assert not parent.outpost.queue.discard(dropped)
    parent.outpost.queue.hurry(hurried)

    assert Orders((), (FIRST + hurried.slot,), (FIRST + dropped.slot,)) == (await parent.orders())[-1]
    assert "interactive" == hurried.request_class


async def test_the_state_is_the_parents_but_for_draining(parent: Parent) -> None:
    """An HTTP process that drains says so, whatever the others do; an image's cost counts for all processes."""
    outpost = parent.outpost
    assert ("ready", 8, 0.5) == (outpost.state, outpost.max_batch, outpost.queue.seconds_per_image)
    assert {"dtype": "float32"} == outpost.info

    outpost.drain()

    assert ("draining", "the service is shutting down") == (outpost.state, outpost.reason)


async def test_a_failure_ends_what_waits(parent: Parent) -> None:
    """Each job gets its 503, and the server is told."""
    failures: list[str] = []
    parent.outpost.on_failure = lambda: failures.append(parent.outpost.failure)
    job = queue(parent.outpost)

    await parent.says(Told("failed", "no device", True, None, 1, 0.0, 0, False))

    with pytest.raises(NotReady):
        await job.done
    assert ["no device"] == failures
    with pytest.raises(NotReady):
        assert parent.outpost.info


async def test_without_its_parent_it_has_failed(parent: Parent) -> None:
    """Nobody will ever answer."""
    parent.link.close()
    await settle()

    assert ("failed", "the parent process is gone") == (parent.outpost.state, parent.outpost.failure)


async def test_what_is_said_before_the_link_is_there_arrives(anyio_backend: object) -> None:
    """The server listens before the event loop has come to it."""
    ours, theirs = socket.socketpair()
    memory = os.memfd_create("test")
    outpost = Outpost(Begin("{}", "http-1", 0, (), "", 7), Lease(memory, 0, 1), 1, 1, Tally.of_one(1), theirs)
    outpost.listening()
    heard: list[Any] = []
    link = await Connection.open(ours, heard.append)
    task = asyncio.create_task(outpost.run())
    await settle()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await outpost.close()
    link.close()
    os.close(memory)

    assert [Listening()] == heard
