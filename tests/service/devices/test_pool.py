"""How many devices a service needs, with scripted devices. Real processes: tests/e2e/test_devices.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from service.devices import supervisor as module
from service.devices.pool import Pool
from service.devices.process import DeviceLost
from service.devices.slots import Slots
from service.errors import InferenceFailed, NotReady
from service.jobs import Job, Task
from service.settings import Settings
from service.status import ModelId
from service.telemetry.metrics import Metrics
from tests.service.devices.scripted_devices import SLOTS, FakeDevice, Script, dies_of, rows

pytestmark = pytest.mark.anyio
MISSING = DeviceLost("no such GPU")


@asynccontextmanager
async def pool(
    monkeypatch: pytest.MonkeyPatch, script: Script, ready: str, metrics: Metrics | None = None
) -> AsyncIterator[Pool]:
    """A running pool of two scripted devices."""
    monkeypatch.setattr(module, "DeviceProcess", FakeDevice)
    monkeypatch.setattr(FakeDevice, "script", script, raising=False)
    settings = Settings.model_validate({"device": "cuda:0,cuda:1", "ready_devices": ready, "queue_images": SLOTS})
    metrics = metrics or Metrics(queue_capacity=SLOTS)
    pool = Pool(settings, metrics.model("m"), Slots(SLOTS), ModelId("m"), "")
    task = asyncio.create_task(pool.run())
    try:
        async with asyncio.timeout(10):
            while pool.state.phase == "starting":
                await asyncio.sleep(0.01)
        yield pool
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await pool.close()


async def test_if_any_will_do_a_device_that_never_starts_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """With VIM_READY_DEVICES=any the service is ready without a device that does not start; /info says why."""
    async with pool(monkeypatch, Script(MISSING, rows), "any") as found:
        assert "ready" == found.state.phase
        devices = found.state.to_json()["devices"]
        assert [("cuda:0", False, "no such GPU"), ("cuda:1", True, None)] == [
            (one["name"], one["up"], one["last_reason"]) for one in devices
        ]


@pytest.mark.parametrize(("script", "ready"), [(Script(MISSING, rows), "all"), (Script(MISSING), "any")])
async def test_too_few_that_start_end_the_service(monkeypatch: pytest.MonkeyPatch, script: Script, ready: str) -> None:
    """The service fails if one device does not start and all are required, or if none starts."""
    async with pool(monkeypatch, script, ready) as found:
        assert ("failed", "no such GPU") == (found.state.phase, found.state.failure)
        assert found.settled.is_set()


@pytest.mark.parametrize(("script", "loaded", "failed"), [(Script(rows), 1, 0), (Script(MISSING), 0, 1)])
async def test_a_load_is_counted_by_how_it_ended(
    monkeypatch: pytest.MonkeyPatch, script: Script, loaded: int, failed: int
) -> None:
    """A pool that becomes ready has loaded its model; one that fails before that has not."""
    metrics = Metrics(queue_capacity=SLOTS)
    async with pool(monkeypatch, script, "all", metrics):
        page = metrics.render()[0].decode()

    assert f'vim_model_loads_total{{model="m",outcome="loaded"}} {loaded}.0' in page
    assert f'vim_model_loads_total{{model="m",outcome="failed"}} {failed}.0' in page


async def test_a_job_is_failed_at_once_when_the_model_cannot_be_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that is submitted after the failure of the service fails at once, so that it does not wait for ever."""
    async with pool(monkeypatch, Script(MISSING), "all") as found:
        job = Job(0, Task("embed"), 0.0, asyncio.get_running_loop().create_future())
        found.submit(job)

        with pytest.raises(NotReady):
            await job.done


async def test_a_quarantined_image_is_failed_without_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarantined image is refused and not sent to a device again."""
    script = Script(dies_of(1))
    async with pool(monkeypatch, script, "any") as found:
        jobs = [Job(1, Task("embed"), 0.0, asyncio.get_running_loop().create_future()) for _ in range(2)]
        found.slots.acquire(2)
        found.submit(jobs[0])
        with pytest.raises(InferenceFailed, match="died"):
            await jobs[0].done
        ran = len(script.batches)
        found.submit(jobs[1])

        with pytest.raises(InferenceFailed, match="quarantined"):
            await jobs[1].done
        assert ran == len(script.batches)
