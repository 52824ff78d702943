"""The parent's broker, with scripted devices. Real processes: tests/e2e/test_http_workers.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pytest

from service.devices import supervisor as module
from service.devices.messages import BatchDone
from service.ipc import Connection as IpcConnection
from service.jobs import Area, Job, Task
from service.server.prefork.broker import Broker, Channel
from service.server.prefork.messages import Outcomes, ServiceState, Submission, Submissions, ToChild
from service.settings import Settings
from service.status import ModelState
from service.telemetry.metrics import Metrics
from tests.service.devices import scripted_devices as scripts
from tests.service.devices.scripted_devices import FakeDevice, Script, rows

pytestmark = pytest.mark.anyio

KEY = 1  # of the only model
EACH = scripts.SLOTS // 2  # slots of one HTTP process, so that the canary's slot is where the scripts expect it


class Connection:
    """Keeps the messages to an HTTP process."""

    def __init__(self) -> None:
        self.sent: list[ToChild] = []

    def send(self, message: ToChild) -> None:
        """Keep it."""
        self.sent.append(message)


@dataclass
class Process:
    """A test's HTTP process and its channel."""

    channel: Channel
    received: list[ToChild]

    def send(self, message: Submissions) -> None:
        """A message to the parent."""
        self.channel.receive(message)

    def submit(self, *slots: int) -> None:
        """Submit decoded images."""
        self.send(Submissions(tuple(Submission(slot, Task("embed"), 0.0, "interactive", KEY) for slot in slots)))

    @property
    def model(self) -> ModelState:
        """The only model of the latest state."""
        [model] = self.state.state.models
        return model

    @property
    def area(self) -> Area:
        """The pixels of the model."""
        assert self.model.area is not None
        return self.model.area

    @property
    def outcomes(self) -> dict[int, float | str]:
        """The first value of each row, or the code of its error, by slot."""
        found = [one for one in self.received if isinstance(one, Outcomes)]
        rows = {row.slot: float(np.frombuffer(row.values, np.float32)[0]) for one in found for row in one.rows}
        return rows | {error.slot: error.code for one in found for error in one.errors}

    @property
    def freed(self) -> list[int]:
        """Slots that the parent has freed."""
        return sorted(slot for one in self.received if isinstance(one, Outcomes) for slot in one.freed)

    @property
    def state(self) -> ServiceState:
        """The last state that was sent."""
        return [one for one in self.received if isinstance(one, ServiceState)][-1]


def join(broker: Broker, number: int) -> Process:
    """Connect the HTTP process with this number."""
    connection = Connection()
    return Process(broker.open(number, cast(IpcConnection, cast(Any, connection))), connection.sent)


@asynccontextmanager
async def running(monkeypatch: pytest.MonkeyPatch, script: Script, **settings: Any) -> AsyncIterator[Broker]:
    """A ready broker with one scripted device; no HTTP process has connected yet."""
    monkeypatch.setattr(module, "DeviceProcess", FakeDevice)
    monkeypatch.setattr(module, "BACKOFF_S", (0.0,))
    monkeypatch.setattr(FakeDevice, "script", script, raising=False)
    wanted = {"device": "cpu", "http_workers": 2, "queue_images": EACH} | settings
    broker = Broker(Settings.model_validate(wanted), Metrics(queue_capacity=0), "")
    task = asyncio.create_task(broker.run())
    try:
        await until(lambda: broker.registry.state.models[0].phase != "starting")
        yield broker
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await broker.registry.close()


async def until(condition: Callable[[], object]) -> None:
    """Run the event loop until the condition is true."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def test_images_of_all_processes_share_batches_and_each_gets_its_own_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Images of two HTTP processes run in one batch, each process gets its own results, and slots are freed."""
    script = Script(rows)
    async with running(monkeypatch, script) as broker:
        one, two = join(broker, 0), join(broker, 1)
        one.submit(0, 1)
        two.submit(EACH, EACH + 1)
        await until(lambda: len(one.freed) + len(two.freed) == 4)

        assert {0: 1.0, 1: 2.0} == one.outcomes
        assert {EACH: EACH + 1.0, EACH + 1: EACH + 2.0} == two.outcomes
        assert ([0, 1], [EACH, EACH + 1]) == (one.freed, two.freed)
        assert [4] == script.batches


async def test_a_process_receives_the_state_when_it_connects(monkeypatch: pytest.MonkeyPatch) -> None:
    """An HTTP process receives the state when it connects, and not again while it stays the same."""
    async with running(monkeypatch, Script(rows)) as broker:
        late = join(broker, 0)
        broker.send_state()
        broker.send_state()

        assert [ServiceState] == [type(one) for one in late.received]
        assert ("ready", 8) == (late.model.phase, late.model.max_batch)
        assert late.model.model is not None


async def test_the_images_of_a_process_that_has_ended_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """When an HTTP process ends, its queued jobs are cancelled, and its successor can use the same slots."""
    script = Script(rows)
    async with running(monkeypatch, script) as broker:
        gone = join(broker, 0)
        gone.submit(0, 1)
        await until(lambda: script.batches)
        gone.submit(2)
        broker.close(0)
        successor = join(broker, 0)
        successor.submit(0, 2)
        await until(lambda: len(successor.freed) >= 2)

        assert {} == gone.outcomes
        assert {0: 1.0, 2: 3.0} == successor.outcomes
        assert [2, 2] == script.batches


async def test_a_dropped_image_on_the_device_keeps_its_slot_until_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancelled image that a device still reads keeps its slot until the batch has ended."""
    script = Script(rows)
    async with running(monkeypatch, script) as broker:
        process = join(broker, 0)
        process.submit(5)
        await until(lambda: script.out)
        process.send(Submissions(cancelled=(5,)))
        await asyncio.sleep(0)
        assert [] == process.freed

        await until(lambda: process.freed)

        assert {} == process.outcomes


async def test_an_image_that_killed_a_device_is_refused_from_whatever_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarantined image is refused from every HTTP process."""

    def dies_alone(batch: Sequence[Job]) -> BatchDone:
        return scripts.dies(batch) if batch[0].slot == 1 else rows(batch)

    async with running(monkeypatch, Script(dies_alone)) as broker:
        one, two = join(broker, 0), join(broker, 1)
        for slot in (1, EACH):
            broker.slots.views(two.area)[slot][...] = 9
        one.submit(1)
        await until(lambda: one.outcomes)
        two.submit(EACH)
        await until(lambda: two.freed)

        assert ["inference_failed"] * 2 == [one.outcomes[1], two.outcomes[EACH]]


async def test_when_the_devices_are_given_up_everybody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the devices are given up, waiting and later jobs get 503, and the HTTP processes are told."""
    async with running(monkeypatch, Script(scripts.dies), max_restarts=0) as broker:
        one, two = join(broker, 0), join(broker, 1)
        one.submit(0, 1)
        await until(lambda: len(one.outcomes) == 2)
        two.submit(EACH)
        await until(lambda: two.outcomes)

        assert ["not_ready"] * 3 == [*one.outcomes.values(), *two.outcomes.values()]
        assert "failed" == two.model.phase


async def test_slots_that_a_predecessor_had_submitted_are_not_freed_to_its_successor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Slots of a predecessor are not freed in its successor, which may have submitted the same slot."""
    script = Script(rows)
    async with running(monkeypatch, script) as broker:
        gone = join(broker, 0)
        gone.submit(5)
        await until(lambda: script.out)
        broker.close(0)
        successor = join(broker, 0)
        await until(lambda: not script.out)
        await asyncio.sleep(0.01)

        assert [] == successor.freed
