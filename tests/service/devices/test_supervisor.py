"""A supervisor restarts its device process, and gives up after too many restarts; with scripted devices."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest

from service.devices import supervisor as module
from service.devices.process import DeviceLost
from service.devices.supervisor import RestartsExhausted, check_memory
from tests.service.devices.scripted_devices import Script, dies, dies_of, model_info, outcomes, rows, submit, supervised

pytestmark = pytest.mark.anyio


async def test_work_survives_the_death_of_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a device process ends, its jobs run in the next process, and clients see results only."""
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
    """The watchdog is ten times the slowest warm-up batch, at least 10 s, or VIM_WATCHDOG_MS."""
    script = Script(rows)
    script.slowest_s = slowest_s
    async with supervised(monkeypatch, script, **settings) as supervisor:
        await outcomes(submit(supervisor, 1))

        assert watchdog_s == script.devices[0].watchdog_s


async def test_every_process_shows_the_canary_before_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every device process, also after a restart, runs the canary after its self-test."""
    script = Script(dies, rows)
    async with supervised(monkeypatch, script) as supervisor:
        await outcomes(submit(supervisor, 1))

        assert ["load", "self-test and warm-up", "canary"] * 2 == script.steps
        assert (1, "killed") == (supervisor.restarts, supervisor.last_reason)


async def test_the_pauses_before_restarts_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no pause before the first restart; then pauses grow, and the last one repeats."""
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
            await asyncio.wait_for(supervisor.task, 10)

    assert [0, 1, 2, 3, 4, 5, 5, 5] == noted
    assert pauses[0] == 0
    assert list(pauses) == sorted(pauses)


async def test_restarts_in_a_row_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """After VIM_MAX_RESTARTS failed restarts the supervisor gives up and says why."""
    script = Script(dies, DeviceLost("no GPU"))
    async with supervised(monkeypatch, script, max_restarts=3) as supervisor:
        submit(supervisor, 1)
        with pytest.raises(RestartsExhausted, match=r"3 restarts in a row failed.*no GPU"):
            await asyncio.wait_for(supervisor.task, 10)
        assert 1 + 3 == script.started


async def test_a_batch_that_runs_ends_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that runs ends a row of restarts, so later losses do not add up to VIM_MAX_RESTARTS."""
    script = Script(*[dies_of(0), rows] * 1)
    async with supervised(monkeypatch, script, max_restarts=1) as supervisor:
        for _ in range(3):
            script.started = 0
            (answer,) = await outcomes(submit(supervisor, 1))
            assert hasattr(answer, "values")


async def test_a_process_that_stayed_up_ends_the_row_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was up for `STABLE_S` and ends idle does not count towards VIM_MAX_RESTARTS."""
    monkeypatch.setattr(module, "STABLE_S", -1.0)
    script = Script(rows)
    async with supervised(monkeypatch, script, max_restarts=1) as supervisor:
        for restarts in range(1, 5):
            async with asyncio.timeout(10):
                while not supervisor.up:
                    await asyncio.sleep(0.001)
                script.devices[-1].lost = DeviceLost("killed while idle")
                supervisor.context.wake.set()
                while supervisor.restarts < restarts or not supervisor.up:
                    await asyncio.sleep(0.001)

        assert (4, 5) == (supervisor.restarts, script.started)


async def test_the_first_start_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A first start that fails is not repeated, because the configuration is probably wrong."""
    script = Script(DeviceLost("no such model"))
    async with supervised(monkeypatch, script) as supervisor:
        with pytest.raises(DeviceLost, match="no such model"):
            await asyncio.wait_for(supervisor.task, 10)
        assert 1 == script.started


def test_slots_that_would_take_most_of_the_memory_are_refused() -> None:
    """The message names the setting, the sizes and the largest value that is accepted."""
    model = dataclasses.replace(model_info(), image_size=1248)
    check_memory(model, 4096, None)
    check_memory(model, 4096, 64 << 30)
    with pytest.raises(DeviceLost, match=r"VIM_QUEUE_IMAGES=4096 images of 1248 px take 19\.1 GB.*at most 1837"):
        check_memory(model, 4096, 16 << 30)


async def test_a_process_that_cannot_be_started_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A restart without descriptors, processes or memory is a failed restart; the jobs are answered by a later one."""
    script = Script(dies, DeviceLost("the device process cannot be started: Too many open files"), rows)
    async with supervised(monkeypatch, script) as supervisor:
        (answer,) = await outcomes(submit(supervisor, 1))

        assert hasattr(answer, "values")
        assert 2 == supervisor.restarts
