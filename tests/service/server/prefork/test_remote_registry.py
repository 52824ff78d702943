"""The pool of an HTTP process that shares the devices of its parent; the test is the parent."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from service.devices.slots import Lease, Slots
from service.errors import InferenceFailed, LoadFailed, NotReady, UnknownModel
from service.ipc import Connection
from service.jobs import Area, Job, RequestClass, Result, Task
from service.server.prefork.messages import (
    Control,
    Controlled,
    Failed,
    FromChild,
    Listening,
    Outcomes,
    Row,
    ServiceState,
    Submission,
    Submissions,
    ToChild,
    Using,
)
from service.server.prefork.remote_registry import RemoteRegistry
from service.status import BackendState, ModelId, ModelState
from tests.service.devices.scripted_devices import model_info

pytestmark = pytest.mark.anyio

SLOTS, FIRST, SIZE = 4, 4, 8
KEY = 5
AREA = Area(0, SIZE)
SERVED = ModelState(ModelId("m", "1", KEY), "ready", "", True, model_info(), (), 8, area=AREA)
READY = ServiceState(BackendState("m", (SERVED,), serial=1), {KEY: 0.25})


@dataclass
class Parent:
    """The parent's end of the connection."""

    pool: RemoteRegistry
    connection: Connection
    received: list[Any] = field(default_factory=list)

    @property
    def model(self) -> ModelState:
        """The state of the only model."""
        [model] = self.pool.state.models
        return model

    async def send(self, *messages: ToChild) -> None:
        """Send, and wait until the messages have arrived."""
        for message in messages:
            self.connection.send(message)
        await settle()

    @property
    def reports(self) -> list[Using]:
        """What the pool has reported about its use of models."""
        return [one for one in self.received if isinstance(one, Using)]

    @property
    def controls(self) -> list[Control]:
        """The loads and unloads that the pool has asked for."""
        return [one for one in self.received if isinstance(one, Control)]

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
    pool = RemoteRegistry(Slots(SLOTS, lease=Lease(os.dup(memory), 1, 2)), theirs)
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


def submit(pool: RemoteRegistry, request_class: RequestClass = "interactive", *, more: bool = False) -> Job:
    """Submit a job in a slot of its own, as the engine does."""
    [slot] = pool.slots.acquire(1, request_class)
    future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
    job = Job(slot, Task("embed"), 1.0, future, request_class, KEY)
    pool.submit(job, more=more)
    return job


async def test_jobs_are_identified_by_the_slot_of_the_whole_service(parent: Parent) -> None:
    """Jobs of one iteration go in one message, with slot numbers and pixels where the parent expects them."""
    first, second = submit(parent.pool), submit(parent.pool)
    parent.pool.slots.views(AREA)[first.slot][...] = 9

    submissions = await parent.submissions()

    expected = tuple(Submission(FIRST + job.slot, Task("embed"), 1.0, "interactive", KEY) for job in (first, second))
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
    assert ("ready", 8, {KEY: 0.25}) == (parent.model.phase, parent.model.max_batch, pool.seconds_per_image)
    assert model_info() == parent.model.model

    pool.drain()

    assert ("draining", "the service is shutting down") == (parent.model.phase, parent.model.reason)
    await parent.send(READY)
    assert "draining" == parent.model.phase


async def test_a_failure_ends_what_waits(parent: Parent) -> None:
    """When the devices have failed, waiting jobs get 503 and `failed` is set."""
    job = submit(parent.pool)

    await parent.send(
        ServiceState(BackendState("m", (replace(SERVED, phase="failed", failure="no device"),), serial=1), {})
    )

    with pytest.raises(NotReady):
        await job.done
    assert parent.pool.failed.is_set()
    assert ("failed", "no device") == (parent.model.phase, parent.model.failure)


async def test_without_its_parent_it_has_failed(parent: Parent) -> None:
    """When the connection to the parent ends, the pool has failed."""
    parent.connection.close()
    await settle()

    assert ("failed", "the parent process is gone") == (parent.model.phase, parent.model.failure)
    assert parent.pool.failed.is_set()


async def test_messages_from_before_the_connection_is_open_arrive(anyio_backend: object) -> None:
    """Messages that are sent before the connection is open arrive later."""
    ours, theirs = socket.socketpair()
    pool = RemoteRegistry(Slots(1), theirs)
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


SECOND = replace(SERVED, id=ModelId("m", "2", KEY + 1), area=Area(4096, SIZE))
SWITCHED = ServiceState(BackendState("m", (SECOND,), serial=2), {})


async def test_the_parent_hears_which_models_are_used(parent: Parent) -> None:
    """A new state is confirmed with the models that are still held; the last release is reported, once."""
    pool = parent.pool
    for _ in range(2):
        pool.hold(KEY)
    await parent.send(SWITCHED)
    assert [Using(1, (KEY,)), Using(2, (KEY, KEY + 1))] == parent.reports
    pool.release(KEY)
    await settle()
    assert 2 == len(parent.reports)
    pool.release(KEY)
    pool.hold(KEY + 1)
    pool.release(KEY + 1)
    await settle()

    assert [Using(2, (KEY + 1,))] == parent.reports[2:]


async def test_a_state_with_the_same_models_is_not_confirmed_again(parent: Parent) -> None:
    """Values that change all the time cause no messages; an empty set of models does."""
    await parent.send(READY, replace_seconds(READY, 0.5), ServiceState(BackendState("m", (), serial=2), {}))

    assert [Using(1, (KEY,)), Using(2, ())] == parent.reports


def replace_seconds(state: ServiceState, seconds: float) -> ServiceState:
    """The same state with another time per image."""
    return ServiceState(state.state, {KEY: seconds})


@pytest.mark.parametrize("starting", [False, True])
async def test_pixels_of_a_model_that_is_used_no_more_are_unmapped(
    parent: Parent, monkeypatch: pytest.MonkeyPatch, *, starting: bool
) -> None:
    """The area is forgotten after the last release, also if the model was known before it had one."""
    pool, forgotten = parent.pool, list[Area]()
    monkeypatch.setattr(pool.slots, "forget", forgotten.append)
    first, area = KEY, AREA
    if starting:  # a model that is known, then loaded, then replaced
        first, area = KEY + 9, Area(8192, SIZE)
        loads = replace(SERVED, id=ModelId("m", "9", first), phase="starting", area=None)
        for state in (loads, replace(loads, phase="ready", area=area)):
            await parent.send(ServiceState(BackendState("m", (state,), serial=2), {}))
        forgotten.clear()
    pool.hold(first)
    await parent.send(ServiceState(BackendState("m", (SECOND,), serial=3), {}))
    assert [] == forgotten
    pool.release(first)

    assert [area] == forgotten


async def test_loads_and_unloads_are_done_by_the_parent(parent: Parent) -> None:
    """Each call waits for its own answer; an error has the class and the detail of the parent's."""
    pool = parent.pool
    calls = [pool.load("m"), pool.load("m", "3"), pool.unload("n")]
    tasks = [asyncio.create_task(call) for call in calls]
    await settle()
    asked = [(one.action, one.name, one.version) for one in parent.controls]
    assert [("load", "m", None), ("load", "m", "3"), ("unload", "n", None)] == asked
    first, second, third = (one.id for one in parent.controls)
    await parent.send(Controlled(third, "model_not_found", "no n"), Controlled(second, "load_failed", "damaged"))
    assert [False, True, True] == [task.done() for task in tasks]
    await parent.send(Controlled(first))

    assert await tasks[0] is None  # type: ignore[func-returns-value]
    with pytest.raises(LoadFailed, match="^damaged$"):
        await tasks[1]
    with pytest.raises(UnknownModel, match="^no n$"):
        await tasks[2]


async def test_the_answer_to_a_load_that_was_cancelled_is_ignored(parent: Parent) -> None:
    """The connection goes on."""
    task = asyncio.create_task(parent.pool.load("m"))
    await settle()
    task.cancel()
    await parent.send(Controlled(parent.controls[0].id), SWITCHED)

    assert task.cancelled()
    assert SECOND == parent.model


async def test_a_load_ends_with_the_parent(parent: Parent) -> None:
    """When the parent is gone, a load that waits for it fails."""
    task = asyncio.create_task(parent.pool.load("m"))
    await settle()
    parent.connection.close()

    async with asyncio.timeout(10):
        with pytest.raises(NotReady, match="the parent process is gone"):
            await task
