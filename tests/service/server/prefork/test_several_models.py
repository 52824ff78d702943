"""The parent and its HTTP processes when models are loaded and unloaded; devices are scripted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from service.ipc import Connection as IpcConnection
from service.jobs import Task
from service.server.prefork.broker import Broker, Channel
from service.server.prefork.messages import (
    Control,
    Controlled,
    Outcomes,
    ServiceState,
    Submission,
    Submissions,
    ToChild,
    Using,
)
from service.settings import Settings
from service.status import BackendState
from service.telemetry.metrics import Metrics
from tests.service.devices.scripted_devices import SLOTS
from tests.service.registry.scripted_models import Fleet, quiet, scripted, until, write_repository

pytestmark = pytest.mark.anyio
EACH = SLOTS // 2


@dataclass
class Process:
    """An HTTP process: it keeps what it receives, and confirms only what the test lets it confirm."""

    channel: Channel = field(init=False)
    received: list[ToChild] = field(default_factory=list)

    def send(self, message: ToChild) -> None:
        """Receive a message of the parent."""
        self.received.append(message)

    @property
    def state(self) -> BackendState:
        """The newest state."""
        return [one for one in self.received if isinstance(one, ServiceState)][-1].state

    @property
    def key(self) -> int:
        """The load of `m` in the newest state."""
        found = self.state.find("m")
        assert found is not None
        return found.id.key

    def confirm(self, *models: int) -> None:
        """Tell the parent that the process has the newest state, and uses its models and these."""
        used = {one.id.key for one in self.state.models} | set(models)
        self.channel.receive(Using(self.state.serial, tuple(sorted(used))))

    def control(self, message: Control) -> None:
        """Ask the parent to load or unload a model."""
        self.channel.receive(message)

    @property
    def answers(self) -> list[Controlled]:
        """The answers to these."""
        return [one for one in self.received if isinstance(one, Controlled)]

    def submit(self, slot: int, model: int) -> None:
        """Submit a decoded image."""
        self.channel.receive(Submissions((Submission(slot, Task("embed"), 0.0, "interactive", model),)))

    @property
    def rows(self) -> dict[int, float]:
        """The device process that has answered, by slot."""
        found = [row for one in self.received if isinstance(one, Outcomes) for row in one.rows]
        return {row.slot: float(np.frombuffer(row.values, np.float32)[0]) for row in found}

    @property
    def errors(self) -> dict[int, str]:
        """The code of each error, by slot."""
        found = [error for one in self.received if isinstance(one, Outcomes) for error in one.errors]
        return {error.slot: error.code for error in found}


def join(broker: Broker, number: int) -> Process:
    """Connect the HTTP process with this number."""
    process = Process()
    process.channel = broker.open(number, cast(IpcConnection, cast(Any, process)))
    return process


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> Fleet:
    """The scripted device processes of the test."""
    return scripted(monkeypatch)


@pytest.fixture
async def broker(fleet: Fleet, tmp_path: Path) -> AsyncIterator[Broker]:
    """A broker for two HTTP processes that serves version 2 of `m`."""
    folder = write_repository(tmp_path, "m/1", "m/2")
    wanted = {"device": "cpu", "http_workers": 2, "queue_images": EACH, "model_repository": folder}
    broker = Broker(Settings.model_validate(wanted), Metrics(queue_capacity=0), "")
    task = asyncio.create_task(broker.run())
    await until(lambda: broker.registry.state.models[0].phase == "ready")
    yield broker
    for number in (0, 1):
        broker.close(number)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await broker.registry.close()


LOAD = Control(7, "load", "m", "1")


async def test_a_load_is_answered_when_every_process_uses_it(broker: Broker, fleet: Fleet) -> None:
    """The process that asked is told when both have confirmed the new state; then the old version ends."""
    one, two = join(broker, 0), join(broker, 1)
    for process in (one, two):
        process.confirm()
    one.control(LOAD)
    await until(lambda: two.state.serial == 1)
    one.confirm()
    await quiet()
    assert ([], ["m/2", "m/1"]) == (one.answers, fleet.alive)
    two.confirm()
    await until(lambda: one.answers)

    assert ([Controlled(7)], []) == (one.answers, two.answers)
    await until(lambda: ["m/1"] == fleet.alive)


async def test_a_load_that_fails_is_answered_with_its_error(broker: Broker, fleet: Fleet) -> None:
    """The code and the detail of the error are sent; unknown names and models that are not loaded likewise."""
    process = join(broker, 0)
    process.confirm()
    fleet.broken["m/1"] = "damaged"
    process.control(LOAD)
    process.control(Control(8, "load", "nope"))
    process.control(Control(9, "unload", "nope"))
    await until(lambda: len(process.answers) == 3)

    assert {(7, "load_failed"), (8, "model_not_found"), (9, "model_not_found")} == {
        (one.id, one.code) for one in process.answers
    }
    assert "m, version 1: damaged" in [one.detail for one in process.answers]
    assert 0 == process.state.serial


async def test_an_error_of_the_parent_itself_is_answered(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault in the parent is an internal error without details; the request does not wait for ever."""

    async def faulty(*_: object) -> None:
        raise OSError("/secret/path")

    monkeypatch.setattr(broker.registry, "load", faulty)
    process = join(broker, 0)
    process.control(LOAD)
    await until(lambda: process.answers)

    [answer] = process.answers
    assert (7, "internal_error") == (answer.id, answer.code)
    assert "secret" not in answer.detail


async def test_a_process_that_still_uses_a_version_keeps_it(broker: Broker, fleet: Fleet) -> None:
    """Its jobs for the old version are answered by the old device process until it has released the version."""
    one, two = join(broker, 0), join(broker, 1)
    former = one.key
    for process in (one, two):
        process.confirm()
    one.control(LOAD)
    await until(lambda: one.state.serial == 1)
    one.confirm()
    two.confirm(former)
    await until(lambda: one.answers)
    two.submit(EACH, former)
    one.submit(0, one.key)
    await until(lambda: two.rows and one.rows)

    assert ({0: 2.0}, {EACH: 1.0}, ["m/2", "m/1"]) == (one.rows, two.rows, fleet.alive)
    two.confirm()
    await until(lambda: ["m/1"] == fleet.alive)
    two.submit(EACH, former)
    await until(lambda: two.errors)
    assert {EACH: "not_ready"} == two.errors


async def test_a_state_that_was_not_confirmed_keeps_its_models(broker: Broker, fleet: Fleet) -> None:
    """A process may submit jobs for every model of a state that it was sent, until it confirms a later one."""
    process = join(broker, 0)
    former = process.key
    assert process.channel.uses(former)
    broker.registry.users.discard(process.channel)  # the switch does not wait for it
    await broker.registry.load("m", "1")
    broker.registry.users.add(process.channel)
    await until(lambda: process.state.serial == 1)

    assert [True, True] == [process.channel.uses(key) for key in (former, process.key)]
    process.confirm()
    assert [False, True] == [process.channel.uses(key) for key in (former, process.key)]


async def test_a_process_that_connects_during_a_switch_is_waited_for(broker: Broker, fleet: Fleet) -> None:
    """It receives the new state when it connects, and the load is answered when it has confirmed it."""
    one = join(broker, 0)
    one.confirm()
    one.control(LOAD)
    await until(lambda: one.state.serial == 1)
    late = join(broker, 1)
    one.confirm()
    await quiet()

    assert (1, one.key) == (late.state.serial, late.key)
    assert [] == one.answers
    late.confirm()
    await until(lambda: one.answers)
    await until(lambda: ["m/1"] == fleet.alive)


async def test_a_process_that_ends_during_a_switch_is_not_waited_for(broker: Broker, fleet: Fleet) -> None:
    """The load is answered and the old version ends, although the process has confirmed nothing."""
    one, gone = join(broker, 0), join(broker, 1)
    one.confirm()
    one.control(LOAD)
    await until(lambda: gone.state.serial == 1)
    one.confirm()
    await quiet()
    assert [] == one.answers
    broker.close(1)
    await until(lambda: one.answers)

    assert "" == one.answers[0].code
    await until(lambda: ["m/1"] == fleet.alive)


async def test_the_load_of_a_process_that_has_ended_continues(broker: Broker, fleet: Fleet) -> None:
    """A load is not undone when the process that asked for it ends, and its successor uses the new version."""
    gone = join(broker, 0)
    fleet.pause("m/1")
    gone.control(LOAD)
    await until(lambda: fleet.of("m/1"))
    broker.close(0)
    successor = join(broker, 0)
    successor.confirm()
    fleet.resume("m/1")
    await until(lambda: successor.state.serial == 1)
    successor.confirm()

    await until(lambda: ["m/1"] == fleet.alive)
    assert [] == successor.answers


async def test_an_image_on_the_device_does_not_outlive_its_version(broker: Broker, fleet: Fleet) -> None:
    """When a version ends, the slots of its cancelled images are freed."""
    process = join(broker, 0)
    former = process.key
    process.confirm()
    process.submit(0, former)
    process.channel.receive(Submissions(cancelled=(0,)))
    process.control(LOAD)
    await until(lambda: process.state.serial == 1)
    process.confirm()
    await until(lambda: ["m/1"] == fleet.alive)

    assert [0] == [slot for one in process.received if isinstance(one, Outcomes) for slot in one.freed]
