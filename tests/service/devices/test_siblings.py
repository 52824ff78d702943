"""Where the setting leaves open how many devices there are, the first one says it and each gets a process."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from service.devices import supervisor
from service.devices.batcher import Batcher
from service.devices.messages import Loaded
from service.devices.pool import Fleet
from service.devices.retry import Quarantine
from service.devices.slots import Slots
from service.settings import Settings
from service.telemetry.metrics import Metrics
from tests.service.devices.scripted_devices import CANARY, FakeDevice, Script, rows

pytestmark = pytest.mark.anyio

SLOTS = CANARY


class OneOfThree(FakeDevice):
    """A GPU of a machine with three."""

    started: list[str]

    def __init__(self, settings: Settings, name: str, *rest: Any) -> None:
        super().__init__(settings, name, *rest)
        self.started.append(name)
        self.siblings = ("cuda:1", "cuda:2") if name == "auto" else ()

    async def start(self) -> Loaded:
        """Only the one that was not named says what else there is."""
        await super().start()
        info = {"dtype": "float16", "model": {"fingerprint": "", "name": ""}, "device": {"name": "H200"}, "scan": {}}
        return Loaded(8, {}, (), info, self.siblings)


async def test_every_device_there_is_gets_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """And ready means all of them."""
    monkeypatch.setattr(supervisor, "Device", OneOfThree)
    monkeypatch.setattr(FakeDevice, "script", Script(rows), raising=False)
    monkeypatch.setattr(OneOfThree, "started", [], raising=False)
    arena, metrics = Slots(SLOTS), Metrics(model="m", queue_capacity=SLOTS)
    fleet = Fleet(Settings(), metrics, arena, Batcher(), Quarantine(), worker="")
    task = asyncio.create_task(fleet.run())
    async with asyncio.timeout(10):
        while fleet.state != "ready":
            await asyncio.sleep(0.001)

    assert ["auto", "cuda:1", "cuda:2"] == OneOfThree.started
    assert ["auto", "cuda:1", "cuda:2"] == [device["name"] for device in fleet.info["devices"]]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await fleet.close()
    arena.close()
