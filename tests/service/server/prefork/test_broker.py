"""The parent of several HTTP processes, with scripted devices. Real processes: tests/e2e/test_http_workers.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from service.devices import supervisor as module
from service.devices.messages import BatchDone, FromHttp, Holding, Landed, Loaded, Order, Orders, ToHttp, Told
from service.errors import InferenceFailed, NotReady
from service.jobs import Job, Task
from service.server.prefork.broker import Desk, Dispatch
from service.settings import Settings
from service.telemetry.metrics import Metrics
from tests.service.devices import scripted_devices as scripts
from tests.service.devices.scripted_devices import FakeDevice, Script, rows
from tests.service.devices.test_pool import Described

pytestmark = pytest.mark.anyio

SHARE = scripts.SLOTS // 2  # so that the canary's slot is where the scripts expect it


@dataclass
class Process:
    """An HTTP process at its desk: what it was told."""

    desk: Desk
    heard: list[ToHttp]
    told: list[Told] = field(default_factory=list)

    def say(self, message: FromHttp) -> None:
        """To the parent."""
        self.desk.take(message)

    def order(self, *slots: int) -> None:
        """These images are decoded."""
        self.say(Orders(tuple(Order(slot, Task("embed"), 0.0, "interactive") for slot in slots)))

    @property
    def answers(self) -> dict[int, float | Exception]:
        """Slot -> first value of its row, or its error."""
        landed = [one for one in self.heard if isinstance(one, Landed)]
        rows = {row.slot: float(np.frombuffer(row.values, np.float32)[0]) for one in landed for row in one.rows}
        return rows | {slot: error for one in landed for slot, error in one.errors}

    @property
    def free(self) -> list[int]:
        """Slots that it has back."""
        return sorted(slot for one in self.heard if isinstance(one, Landed) for slot in one.free)

    @property
    def state(self) -> Told:
        """The last it was told."""
        return [one for one in self.heard if isinstance(one, Told)][-1]


def join(dispatch: Dispatch, number: int) -> Process:
    """A process of this number is there."""
    heard: list[ToHttp] = []
    return Process(dispatch.open(number, heard.append), heard)


@asynccontextmanager
async def dispatching(monkeypatch: pytest.MonkeyPatch, script: Script, **settings: Any) -> AsyncIterator[Dispatch]:
    """A ready fleet of one scripted device before two HTTP processes that are not there yet."""
    monkeypatch.setattr(module, "Device", Described)
    monkeypatch.setattr(module, "BACKOFF_S", (0.0,))
    monkeypatch.setattr(FakeDevice, "script", script, raising=False)
    wanted = {"device": "cpu", "http_workers": 2, "queue_images": 2 * SHARE} | settings
    dispatch = Dispatch(Settings.model_validate(wanted), Metrics(model="m", queue_capacity=0), "")
    task = asyncio.create_task(dispatch.fleet.run())
    try:
        await until(lambda: dispatch.fleet.state != "starting")
        yield dispatch
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        dispatch.arena.close()


async def until(condition: Callable[[], object]) -> None:
    """Let the event loop go on until it is true."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def test_images_of_all_processes_share_batches_and_each_gets_its_own_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One forward pass for both; afterwards every slot is free again."""
    script = Script(rows)
    async with dispatching(monkeypatch, script) as dispatch:
        one, two = join(dispatch, 0), join(dispatch, 1)
        one.order(0, 1)
        two.order(SHARE, SHARE + 1)
        await until(lambda: len(one.free) + len(two.free) == 4)

        assert {0: 1.0, 1: 2.0} == one.answers
        assert {SHARE: SHARE + 1.0, SHARE + 1: SHARE + 2.0} == two.answers
        assert ([0, 1], [SHARE, SHARE + 1]) == (one.free, two.free)
        assert [4] == script.batches


async def test_a_process_is_told_the_model_before_the_state_that_speaks_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that comes late; and nothing is said twice."""
    async with dispatching(monkeypatch, Script(rows)) as dispatch:
        late = join(dispatch, 0)
        dispatch.tell()
        dispatch.tell()

        assert [Loaded, Told] == [type(one) for one in late.heard]
        assert "ready" == late.state.state
        assert 8 == late.state.max_batch


async def test_how_each_process_fares_is_known_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are added up, and one that is overdue is enough; one that has ended counts no more."""
    async with dispatching(monkeypatch, Script(rows)) as dispatch:
        one, two = join(dispatch, 0), join(dispatch, 1)
        one.say(Holding(3, overdue=False))
        two.say(Holding(4, overdue=True))
        dispatch.tell()
        assert (7, True) == (one.state.images, one.state.overdue)

        dispatch.close(1)

        assert (3, False) == (one.state.images, one.state.overdue)


async def test_the_images_of_a_process_that_has_ended_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits is not computed; what is on the device is nobody's, and its successor uses the same slots."""
    script = Script(rows)
    async with dispatching(monkeypatch, script) as dispatch:
        gone = join(dispatch, 0)
        gone.order(0, 1)
        await until(lambda: script.batches)
        gone.order(2)
        dispatch.close(0)
        successor = join(dispatch, 0)
        successor.order(0, 2)
        await until(lambda: len(successor.free) >= 2)

        assert {} == gone.answers
        assert {0: 1.0, 2: 3.0} == successor.answers
        assert [2, 2] == script.batches
        assert 0 == len(dispatch.batcher)


async def test_a_dropped_image_on_the_device_keeps_its_slot_until_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else another image's pixels would be written under it."""
    script = Script(rows)
    async with dispatching(monkeypatch, script) as dispatch:
        process = join(dispatch, 0)
        process.order(5)
        await until(lambda: script.out)
        process.say(Orders(dropped=(5,)))
        await asyncio.sleep(0)
        assert [] == process.free

        await until(lambda: process.free)

        assert {} == process.answers


async def test_an_image_that_killed_a_device_is_refused_from_whatever_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quarantine is by pixels and belongs to all."""

    def dies_alone(batch: Sequence[Job]) -> BatchDone:
        return scripts.dies(batch) if batch[0].slot == 1 else rows(batch)

    async with dispatching(monkeypatch, Script(dies_alone)) as dispatch:
        one, two = join(dispatch, 0), join(dispatch, 1)
        for slot in (1, SHARE):
            dispatch.arena.pixels.slot(slot)[...] = 9
        one.order(1)
        await until(lambda: one.answers)
        two.order(SHARE)
        await until(lambda: two.free)

        assert [InferenceFailed, InferenceFailed] == [type(one.answers[1]), type(two.answers[SHARE])]


async def test_when_the_devices_are_given_up_everybody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits gets its 503, and so does what comes later."""
    async with dispatching(monkeypatch, Script(scripts.dies), max_restarts=0) as dispatch:
        one, two = join(dispatch, 0), join(dispatch, 1)
        one.order(0, 1)
        await until(lambda: len(one.answers) == 2)
        two.order(SHARE)
        await until(lambda: two.answers)

        assert [NotReady] * 3 == [type(error) for error in (*one.answers.values(), *two.answers.values())]
        assert "failed" == two.state.state
