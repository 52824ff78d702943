"""How many devices a service needs: with scripted ones. Real processes: tests/e2e/test_devices.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from service.devices import supervisor as module
from service.devices.batcher import Batcher
from service.devices.messages import Loaded
from service.devices.pool import Fleet
from service.devices.process import DeviceLost
from service.devices.retry import Quarantine
from service.devices.slots import Slots
from service.settings import Settings
from service.telemetry.metrics import Metrics
from tests.service.devices.scripted_devices import SLOTS, FakeDevice, Script, rows

pytestmark = pytest.mark.anyio
MISSING = DeviceLost("no such GPU")


class Described(FakeDevice):
    """A scripted device that says what `/info` wants to know."""

    async def start(self) -> Loaded:
        """As the script has it."""
        loaded = await super().start()
        model = {"name": "m", "fingerprint": "f"}
        return Loaded(loaded.size, {}, (), loaded.info | {"model": model, "device": {"name": "cpu"}, "scan": {}})


@asynccontextmanager
async def fleet(monkeypatch: pytest.MonkeyPatch, script: Script, ready: str) -> AsyncIterator[Fleet]:
    """Two scripted devices; `task` is the fleet at work."""
    monkeypatch.setattr(module, "Device", Described)
    monkeypatch.setattr(FakeDevice, "script", script, raising=False)
    arena = Slots(SLOTS)
    settings = Settings.model_validate({"device": "cuda:0,cuda:1", "ready_devices": ready})
    metrics = Metrics(model="m", queue_capacity=SLOTS, devices=settings.devices)
    fleet = Fleet(settings, metrics, arena, Batcher(), Quarantine(), "")
    task = asyncio.create_task(fleet.run())
    try:
        async with asyncio.timeout(10):
            while fleet.state == "starting":
                await asyncio.sleep(0.01)
        yield fleet
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        arena.close()


def fates(fleet: Fleet) -> dict[str, Any]:
    """Device -> why it is not up, None if it is."""
    return {one["name"]: None if one["up"] else one["last_reason"] for one in fleet.info["devices"]}


async def test_if_any_will_do_a_device_that_never_starts_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """And /info says why."""
    async with fleet(monkeypatch, Script(MISSING, rows), "any") as found:
        assert "ready" == found.state
        assert {"cuda:0": "no such GPU", "cuda:1": None} == fates(found)


@pytest.mark.parametrize(("script", "ready"), [(Script(MISSING, rows), "all"), (Script(MISSING), "any")])
async def test_too_few_that_start_end_the_service(monkeypatch: pytest.MonkeyPatch, script: Script, ready: str) -> None:
    """One is too few if all are wanted, none in any case."""
    async with fleet(monkeypatch, script, ready) as found:
        assert ("failed", "no such GPU") == (found.state, found.failure)
