"""If VIM_DEVICE does not select devices by number, the first process reports them and each gets a process."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from service.devices import supervisor
from service.devices.messages import Loaded
from service.devices.pool import Pool
from service.devices.slots import Slots
from service.settings import Settings
from service.status import ModelId
from service.telemetry.metrics import Metrics
from tests.service.devices.scripted_devices import CANARY, FakeDevice, Script, model_info, rows

pytestmark = pytest.mark.anyio


class OneOfThree(FakeDevice):
    """A device process on a machine with three GPUs."""

    started: list[str]

    def __init__(self, settings: Settings, name: str, *rest: Any) -> None:
        super().__init__(settings, name, *rest)
        self.started.append(name)
        self.siblings = ("cuda:1", "cuda:2") if name == "auto" else ()

    async def start(self, *, background: bool = False) -> Loaded:
        """Only the device that was not selected by number reports the others."""
        await super().start()
        return Loaded(model_info(device="H200", dtype="float16"), self.siblings)


async def test_every_device_there_is_gets_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reported device is started, and the pool is ready when all of them are up."""
    monkeypatch.setattr(supervisor, "DeviceProcess", OneOfThree)
    monkeypatch.setattr(FakeDevice, "script", Script(rows), raising=False)
    monkeypatch.setattr(OneOfThree, "started", [], raising=False)
    metrics = Metrics(queue_capacity=CANARY).model("m")
    pool = Pool(Settings(queue_images=CANARY), metrics, Slots(CANARY), ModelId("m"), worker="")
    task = asyncio.create_task(pool.run())
    async with asyncio.timeout(10):
        while len(pool.state.devices) < 3 or pool.state.phase != "ready":
            await asyncio.sleep(0.001)

    assert ["auto", "cuda:1", "cuda:2"] == OneOfThree.started
    assert ["auto", "cuda:1", "cuda:2"] == [device["name"] for device in pool.state.to_json()["devices"]]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await pool.close()
