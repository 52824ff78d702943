"""A supervisor brings its device back, gives its work back, and gives up in the end: with scripted devices."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from service import supervisor as module
from service.arena import Arena
from service.batcher import Batcher
from service.canary import Canary
from service.device import BatchError, DeviceLost
from service.errors import InferenceFailed, NonFiniteOutput
from service.jobs import Job, RequestClass, Task
from service.messages import BatchDone, Loaded, Ready
from service.metrics import Metrics
from service.recovery import Quarantine
from service.settings import Settings
from service.supervisor import RestartsExhausted, Shared, Supervisor

pytestmark = pytest.mark.anyio

Behaviour = Callable[[Sequence[Job]], BatchDone]


def rows(batch: Sequence[Job]) -> BatchDone:
    """Every job's row is its slot."""
    return BatchDone(0, tuple(np.full(4, job.slot + 1, np.float32) for job in batch), 0.001)


class Script:
    """What the next device processes do: one behaviour for each start; the last one repeats."""

    def __init__(self, *behaviours: Behaviour | DeviceLost) -> None:
        self.behaviours = list(behaviours)
        self.started = 0
        self.batches: list[int] = []
        self.depth, self.largest = 1, 8
        self.out: set[int] = set()  # the first slots of the batches that are with the device
        self.company: list[set[int]] = []  # the same, whenever a batch came
        self.steps: list[str] = []  # of all starts
        self.slowest_s = 0.001  # of the warm-up's batches
        self.devices: list[FakeDevice] = []

    def next(self) -> Behaviour | DeviceLost:
        self.started += 1
        return self.behaviours[min(self.started, len(self.behaviours)) - 1]


class FakeDevice:
    """Stands for `service.device.Device`."""

    script: Script

    def __init__(self, *_: Any) -> None:
        self.behaviour = self.script.next()
        self.script.devices.append(self)
        self.watchdog_s: float | None = None
        self.on_lost: Callable[[], None] = lambda: None

    async def start(self) -> Loaded:
        self.script.steps.append("load")
        if isinstance(self.behaviour, DeviceLost):
            raise self.behaviour
        return Loaded(8, {}, (), {"dtype": "float32"})

    async def warm_up(self, slots: int) -> Ready:
        self.script.steps.append("self-test and warm-up")
        return Ready(
            self.script.largest, {1: 0.001, 8: self.script.slowest_s}, {"name": "torch"}, {}, depth=self.script.depth
        )

    async def run(self, batch: Sequence[Job]) -> BatchDone:
        assert not isinstance(self.behaviour, DeviceLost)
        if batch[0].slot == CANARY:
            self.script.steps.append("canary")
            return rows(batch)
        self.script.batches.append(len(batch))
        self.script.out.add(batch[0].slot)
        self.script.company.append(set(self.script.out))
        try:
            await asyncio.sleep(0.002)
            return self.behaviour(batch)
        finally:
            self.script.out.discard(batch[0].slot)

    def check(self) -> None:
        """Never lost while idle."""

    async def close(self) -> None:
        """Nothing to close."""


SLOTS = 16
CANARY = SLOTS


@asynccontextmanager
async def supervised(monkeypatch: pytest.MonkeyPatch, script: Script, **settings: Any) -> AsyncIterator[Supervisor]:
    """A supervisor at work on scripted devices, without pauses."""
    monkeypatch.setattr(module, "Device", FakeDevice)
    monkeypatch.setattr(module, "BACKOFF_S", (0.0,))
    monkeypatch.setattr(FakeDevice, "script", script, raising=False)
    arena = Arena(SLOTS)
    arena.map(8)
    canary = Canary(arena, "float32")
    shared = Shared(
        settings=Settings.model_validate(settings),
        arena=arena,
        batcher=Batcher(),
        metrics=Metrics(model="m", queue_capacity=SLOTS),
        quarantine=Quarantine(),
        arrived=asyncio.Event(),
        worker="",
        on_loaded=lambda _: canary,
        on_change=lambda: None,
    )
    supervisor = Supervisor(shared, "cpu")
    task = asyncio.create_task(supervisor.run())
    supervisor.task = task  # type: ignore[attr-defined]
    try:
        yield supervisor
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        arena.close()


def submit(
    supervisor: Supervisor, count: int, request_class: RequestClass = "interactive"
) -> list[asyncio.Future[Any]]:
    """Queue jobs in slots of their own."""
    shared = supervisor._shared
    loop = asyncio.get_running_loop()
    slots = shared.arena.acquire(count)
    queued = [Job(slot, Task("embed"), loop.time(), loop.create_future(), request_class) for slot in slots]
    for job in queued:
        shared.batcher.put(job)
    shared.arrived.set()
    return [job.done for job in queued]


async def outcomes(futures: list[asyncio.Future[Any]]) -> list[Any]:
    """Results and errors, in order."""
    async with asyncio.timeout(10):
        return await asyncio.gather(*futures, return_exceptions=True)


def dies(batch: Sequence[Job]) -> BatchDone:
    """The process ends."""
    raise DeviceLost("killed")


def dies_of(slot: int) -> Behaviour:
    """The process ends when it meets one image."""

    def behaviour(batch: Sequence[Job]) -> BatchDone:
        return dies(batch) if slot in [job.slot for job in batch] else rows(batch)

    return behaviour


async def test_work_survives_the_death_of_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next process runs it again; the clients see results only."""
    script = Script(dies, rows)
    async with supervised(monkeypatch, script) as supervisor:
        answers = await outcomes(submit(supervisor, 6))

        assert sorted(answer.values[0] for answer in answers) == [slot + 1 for slot in range(6)]
        assert (1, True) == (supervisor.restarts, supervisor.up)
        assert "killed" == supervisor.last_reason


@pytest.mark.parametrize(
    ("settings", "slowest_s", "watchdog_s"), [({}, 0.2, 10.0), ({}, 3.0, 30.0), ({"watchdog_ms": 1500}, 3.0, 1.5)]
)
async def test_a_batch_hangs_after_ten_times_the_slowest_of_the_warm_up(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, int], slowest_s: float, watchdog_s: float
) -> None:
    """At least ten seconds, unless VIM_WATCHDOG_MS says otherwise."""
    script = Script(rows)
    script.slowest_s = slowest_s
    async with supervised(monkeypatch, script, **settings) as supervisor:
        await outcomes(submit(supervisor, 1))

        assert watchdog_s == script.devices[0].watchdog_s


async def test_every_process_shows_the_canary_before_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """After its self-test; the first one's answer is the golden one. /info has the reason of the restart."""
    script = Script(dies, rows)
    async with supervised(monkeypatch, script) as supervisor:
        await outcomes(submit(supervisor, 1))

        assert ["load", "self-test and warm-up", "canary"] * 2 == script.steps
        assert (1, "killed") == (supervisor.restarts, supervisor.last_reason)


async def test_the_pauses_before_restarts_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pause before the first; the last one repeats."""
    noted: list[int] = []

    class Noted(tuple[float, ...]):
        def __getitem__(self, index: Any) -> Any:
            noted.append(index)
            return 0.0

    pauses = module.BACKOFF_S
    script = Script(dies, DeviceLost("no GPU"))
    async with supervised(monkeypatch, script, max_restarts=8) as supervisor:
        monkeypatch.setattr(module, "BACKOFF_S", Noted(pauses))
        submit(supervisor, 1)
        with pytest.raises(RestartsExhausted):
            await asyncio.wait_for(supervisor.task, 10)  # type: ignore[attr-defined]

    assert [0, 1, 2, 3, 4, 5, 5, 5] == noted
    assert pauses[0] == 0
    assert list(pauses) == sorted(pauses)


async def test_one_poison_image_fails_alone_and_is_quarantined(monkeypatch: pytest.MonkeyPatch) -> None:
    """All others are answered, however often the process dies on the way."""
    script = Script(dies_of(3))
    async with supervised(monkeypatch, script) as supervisor:
        futures = submit(supervisor, 8)
        answers = await outcomes(futures)
        bad = [answer for answer in answers if isinstance(answer, InferenceFailed)]

        assert 1 == len(bad)
        assert 7 == sum(hasattr(answer, "values") for answer in answers)
        with pytest.raises(InferenceFailed):
            supervisor._shared.quarantine.check(supervisor._shared.arena.pixels.slot(3), 0.0)


async def test_out_of_memory_lowers_the_largest_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once learned, it is not tried again."""

    def hungry(batch: Sequence[Job]) -> BatchDone:
        if len(batch) > 2:
            raise BatchError("out_of_memory", "no room")
        return rows(batch)

    script = Script(hungry)
    async with supervised(monkeypatch, script) as supervisor:
        first = await outcomes(submit(supervisor, 8))
        script.batches.clear()
        second = await outcomes(submit(supervisor, 8))

        assert all(hasattr(answer, "values") for answer in first + second)
        assert max(script.batches) <= 2
        assert 0 == supervisor.restarts
        page = supervisor._shared.metrics.render("")[0].decode()
        assert 'vim_batch_limit{device="cpu"} 2.0' in page
        assert 'vim_batch_retries_total{reason="out_of_memory"}' in page


async def test_a_row_that_is_not_finite_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device names it; nothing is run again."""

    def one_nan(batch: Sequence[Job]) -> BatchDone:
        done = rows(batch)
        return BatchDone(0, (None, *done.rows[1:]), 0.001)

    script = Script(one_nan)
    async with supervised(monkeypatch, script) as supervisor:
        answers = await outcomes(submit(supervisor, 4))

        assert isinstance(answers[0], NonFiniteOutput)
        assert 3 == sum(hasattr(answer, "values") for answer in answers)
        assert [4] == script.batches


async def test_an_interactive_image_is_in_the_batch_after_the_one_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """However much bulk waits; and bulk neither slows that batch nor is forgotten after it."""
    batches: list[list[RequestClass]] = []
    late: list[asyncio.Future[Any]] = []

    def recorded(batch: Sequence[Job]) -> BatchDone:
        batches.append([job.request_class for job in batch])
        if len(batches) == 1:
            late.extend(submit(supervisor, 1))
        return rows(batch)

    async with supervised(monkeypatch, Script(recorded)) as supervisor:
        await outcomes(submit(supervisor, 15, "bulk"))
        await outcomes(late)

    assert [["bulk"] * 8, ["interactive"], ["bulk"] * 7] == batches


async def test_restarts_in_a_row_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then it gives up and says why."""
    script = Script(dies, DeviceLost("no GPU"))
    async with supervised(monkeypatch, script, max_restarts=3) as supervisor:
        submit(supervisor, 1)
        with pytest.raises(RestartsExhausted, match=r"3 restarts in a row failed.*no GPU"):
            await asyncio.wait_for(supervisor.task, 10)  # type: ignore[attr-defined]
        assert 1 + 3 == script.started


async def test_a_batch_that_runs_ends_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deaths far apart never add up."""
    script = Script(*[dies_of(0), rows] * 1)
    async with supervised(monkeypatch, script, max_restarts=1) as supervisor:
        for _ in range(3):
            script.started = 0
            (answer,) = await outcomes(submit(supervisor, 1))
            assert hasattr(answer, "values")


async def test_a_process_that_stayed_up_ends_the_row_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rare deaths of an idle server never add up to giving up."""
    monkeypatch.setattr(module, "STABLE_S", -1.0)
    script = Script(rows)
    async with supervised(monkeypatch, script, max_restarts=1) as supervisor:
        await outcomes(submit(supervisor, 1))
        for _ in range(4):
            supervisor.up, supervisor._in_a_row = True, 1  # restarted once, and no batch since
            await supervisor._mourn(DeviceLost("killed while idle"))
            assert 1 == supervisor._in_a_row


async def test_the_first_start_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong configuration will not get better by trying again."""
    script = Script(DeviceLost("no such model"))
    async with supervised(monkeypatch, script) as supervisor:
        with pytest.raises(DeviceLost, match="no such model"):
            await asyncio.wait_for(supervisor.task, 10)  # type: ignore[attr-defined]
        assert 1 == script.started


async def test_two_batches_are_with_a_device_that_takes_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Full ones go at once; never more than two."""
    script = Script(rows)
    script.depth, script.largest = 2, 4
    async with supervised(monkeypatch, script) as supervisor:
        answers = await outcomes(submit(supervisor, 16))

        assert list(range(1, 17)) == sorted(answer.values[0] for answer in answers)
        assert 2 == max(len(company) for company in script.company)
        assert [4, 4, 4, 4] == script.batches


async def test_both_batches_survive_the_death_of_their_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that ran and the one that had been handed over."""
    script = Script(dies, rows)
    script.depth, script.largest = 2, 4
    async with supervised(monkeypatch, script) as supervisor:
        answers = await outcomes(submit(supervisor, 16))

        assert list(range(1, 17)) == sorted(answer.values[0] for answer in answers)
        assert 1 == supervisor.restarts
        assert () == supervisor.running


async def test_among_two_batches_in_flight_only_the_poison_image_is_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has failed once flies alone, so that a death tells which image it was."""
    script = Script(dies_of(3))
    script.depth, script.largest = 2, 1  # every batch is one image: each would look guilty
    async with supervised(monkeypatch, script, max_restarts=20) as supervisor:
        answers = await outcomes(submit(supervisor, 8))
        bad = [index for index, answer in enumerate(answers) if isinstance(answer, InferenceFailed)]

        assert [3] == bad
        with_it = [company for company in script.company if 3 in company]
        assert 2 == len(with_it[0])
        assert [{3}, {3}] == with_it[-2:]


async def test_an_error_of_one_batch_leaves_the_other_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is answered from its first run."""

    def fails_on_zero(batch: Sequence[Job]) -> BatchDone:
        if batch[0].slot == 0 and len(batch) > 1:
            raise BatchError("error", "a kernel was refused")
        return rows(batch)

    script = Script(fails_on_zero)
    script.depth, script.largest = 2, 2
    async with supervised(monkeypatch, script) as supervisor:
        answers = await outcomes(submit(supervisor, 4))

        assert all(hasattr(answer, "values") for answer in answers)
        assert [2, 2, 1, 1] == script.batches
