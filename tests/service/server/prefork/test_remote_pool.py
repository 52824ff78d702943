"""The pool of an HTTP process that shares the devices of its parent; the test is the parent."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from service.devices.slots import Lease, Slots
from service.errors import InferenceFailed, NotReady
from service.ipc import Connection
from service.jobs import Job, RequestClass, Result, Task
from service.server.prefork.messages import (
    Failed,
    FromChild,
    Listening,
    Outcomes,
    Row,
    ServiceState,
    Submission,
    Submissions,
    ToChild,
)
from service.server.prefork.remote_pool import RemotePool
from service.status import BackendState
from tests.service.devices.scripted_devices import model_info

pytestmark = pytest.mark.anyio

SLOTS, FIRST, SIZE = 4, 4, 8
READY = ServiceState(BackendState("ready", "", True, model_info(), (), 8), 0.25)


@dataclass
class Parent:
    """The parent's end of the connection."""

    pool: RemotePool
    connection: Connection
    received: list[Any] = field(default_factory=list)

    async def send(self, *messages: ToChild) -> None:
        """Send, and wait until the messages have arrived."""
        for message in messages:
            self.connection.send(message)
        await settle()

    async def submissions(self, least: int = 1) -> list[Submissions]:
        """The messages about jobs, as soon as there are that many."""
        await settle()
        async with asyncio.timeout(10):
            while len(found := [one for one in self.received if isinstance(one, Submissions)]) < least:
                await asyncio.sleep(0.01)
        return found


async def settle() -> None:
    """Wait until sent messages have arrived."""
    await asyncio.sleep(0.02)


@pytest.fixture
async def parent(anyio_backend: object) -> AsyncIterator[Parent]:
    """A pool with slots 4 to 7 of eight, whose model is loaded; the test is its parent."""
    ours, theirs = socket.socketpair()
    memory = os.memfd_create("test")
    os.ftruncate(memory, (2 * SLOTS + 1) * SIZE * SIZE * 3)
    pool = RemotePool(Slots(SLOTS, lease=Lease(os.dup(memory), 1, 2)), theirs)
    task = asyncio.create_task(pool.run())
    received: list[Any] = []
    connection = await Connection.open(ours, FromChild, received.append)
    parent = Parent(pool, connection, received)
    await parent.send(READY)
    yield parent
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await pool.close()
    connection.close()
    os.close(memory)


def submit(pool: RemotePool, request_class: RequestClass = "interactive", *, more: bool = False) -> Job:
    """Submit a job in a slot of its own, as the engine does."""
    [slot] = pool.slots.acquire(1, request_class)
    future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
    job = Job(slot, Task("embed"), 1.0, future, request_class)
    pool.submit(job, more=more)
    return job


async def test_jobs_are_identified_by_the_slot_of_the_whole_service(parent: Parent) -> None:
    """Jobs of one iteration go in one message, with slot numbers and pixels where the parent expects them."""
    first, second = submit(parent.pool), submit(parent.pool)
    parent.pool.slots.views[first.slot][...] = 9

    submissions = await parent.submissions()

    expected = tuple(Submission(FIRST + job.slot, Task("embed"), 1.0, "interactive") for job in (first, second))
    assert [Submissions(new=expected)] == submissions
    assert bytes([9]) == os.pread(parent.pool.slots.descriptor, 1, (FIRST + first.slot) * SIZE * SIZE * 3)


async def test_while_more_are_about_to_come_jobs_gather(parent: Parent) -> None:
    """While more jobs follow, several are sent in one message, and none waits for long."""
    first = submit(parent.pool, more=True)
    await asyncio.sleep(0)
    second = submit(parent.pool, more=True)

    submissions = await parent.submissions()

    assert [[FIRST + first.slot, FIRST + second.slot]] == [[one.slot for one in each.new] for each in submissions]


async def test_a_slot_is_free_when_the_request_and_the_parent_have_released_it(parent: Parent) -> None:
    """A slot is free once both the request and the parent have released it."""
    job = submit(parent.pool)
    slot = FIRST + job.slot

    await parent.send(Outcomes((Row(slot, np.array([1, 2], np.float32).tobytes(), 0.5, 0.25, 3),), (), ()))
    result = await job.done
    parent.pool.slots.release(job.slot)
    assert 1 == parent.pool.slots.in_use
    await parent.send(Outcomes((), (), (slot,)))

    assert 0 == parent.pool.slots.in_use
    assert ([1, 2], 0.5, 0.25, 3) == (result.values.tolist(), result.queue_s, result.infer_s, result.batch_size)
    assert 1.5 == job.began_at


async def test_an_error_reaches_the_job(parent: Parent) -> None:
    """An error of the parent keeps its type, its detail and its time."""
    job = submit(parent.pool)
    slot = FIRST + job.slot

    await parent.send(Outcomes((), (Failed(slot, "inference_failed", "it failed", 2.0),), (slot,)))

    with pytest.raises(InferenceFailed, match="it failed") as failure:
        await job.done
    assert 2.0 == failure.value.retry_after_s


async def test_slots_of_an_earlier_process_are_not_freed_here(parent: Parent) -> None:
    """Slots that an earlier process had submitted are not freed in its successor."""
    await parent.send(Outcomes((), (), (FIRST, FIRST + 1)))

    assert 0 == parent.pool.slots.in_use
    assert SLOTS == len(parent.pool.slots.acquire(SLOTS))


async def test_jobs_are_cancelled_once_and_promoted(parent: Parent) -> None:
    """The parent is told once of a cancelled job, and of a bulk job that becomes interactive."""
    cancelled, promoted = submit(parent.pool), submit(parent.pool, "bulk")
    await parent.submissions()

    parent.pool.cancel(cancelled)
    parent.pool.cancel(cancelled)
    parent.pool.promote(promoted)

    expected = Submissions((), (FIRST + promoted.slot,), (FIRST + cancelled.slot,))
    assert expected == (await parent.submissions(least=2))[-1]
    assert "interactive" == promoted.request_class


async def test_the_state_is_the_parents_except_for_draining(parent: Parent) -> None:
    """The state is that of the parent, except that this process may be draining."""
    pool = parent.pool
    assert ("ready", 8, 0.25) == (pool.state.phase, pool.state.max_batch, pool.seconds_per_image)
    assert model_info() == pool.state.model

    pool.drain()

    assert ("draining", "the service is shutting down") == (pool.state.phase, pool.state.reason)
    await parent.send(READY)
    assert "draining" == pool.state.phase


async def test_a_failure_ends_what_waits(parent: Parent) -> None:
    """When the devices have failed, waiting jobs get 503 and `failed` is set."""
    job = submit(parent.pool)

    await parent.send(ServiceState(BackendState("failed", "no device", True), 0.0))

    with pytest.raises(NotReady):
        await job.done
    assert parent.pool.failed.is_set()
    assert ("failed", "no device") == (parent.pool.state.phase, parent.pool.state.failure)


async def test_without_its_parent_it_has_failed(parent: Parent) -> None:
    """When the connection to the parent ends, the pool has failed."""
    parent.connection.close()
    await settle()

    assert ("failed", "the parent process is gone") == (parent.pool.state.phase, parent.pool.state.failure)
    assert parent.pool.failed.is_set()


async def test_messages_from_before_the_connection_is_open_arrive(anyio_backend: object) -> None:
    """Messages that are sent before the connection is open arrive later."""
    ours, theirs = socket.socketpair()
    pool = RemotePool(Slots(1), theirs)
    pool.listening()
    received: list[Any] = []
    connection = await Connection.open(ours, FromChild, received.append)
    task = asyncio.create_task(pool.run())
    await settle()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await pool.close()
    connection.close()

    assert [Listening()] == received
