"""A registry with scripted device processes, each of which knows its model and version."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.devices import supervisor as module
from service.devices.messages import BatchDone, Loaded, Ready
from service.devices.process import DeviceLost
from service.jobs import Area, Job, Result, Task
from service.registry.registry import Registry
from service.settings import Settings
from service.status import ModelState
from service.telemetry.metrics import Metrics
from tests.service.devices.scripted_devices import SLOTS, model_info


class Fleet:
    """All device processes of a test, by `NAME/VERSION`: which were started, which wait, which fail."""

    def __init__(self) -> None:
        self.devices: list[Device] = []
        self.broken: dict[str, str] = {}  # these do not start; the reason
        self.steps: list[str] = []  # of all processes, in order
        self._gates: dict[str, asyncio.Event] = {}

    def pause(self, version: str) -> None:
        """Let the next loads of this version wait until `resume`."""
        self._gates[version] = asyncio.Event()

    def resume(self, version: str) -> None:
        """Let them continue."""
        self._gates.pop(version).set()

    async def pass_gate(self, version: str) -> None:
        """Wait while this version is paused."""
        if version in self._gates:
            await self._gates[version].wait()

    def of(self, version: str) -> list[Device]:
        """All processes of this version, in the order of their starts."""
        return [one for one in self.devices if one.version == version]

    @property
    def alive(self) -> list[str]:
        """The versions whose processes were not ended."""
        return [one.version for one in self.devices if not one.closed]


class Device:
    """A scripted `service.devices.process.DeviceProcess`; every value of its results is its number."""

    fleet: Fleet

    def __init__(self, settings: Settings, *_: Any) -> None:
        self.version = f"{settings.served_name}/{Path(settings.model).name}"
        self.fleet.devices.append(self)
        self.number = len(self.fleet.devices)
        self.closed = False
        self.watchdog_s: float | None = None
        self.lost: DeviceLost | None = None

    async def start(self, *, background: bool = False) -> Loaded:
        """Load the model."""
        self.fleet.steps.append(f"load {self.version}")
        await self.fleet.pass_gate(self.version)
        if reason := self.fleet.broken.get(self.version):
            raise DeviceLost(reason)
        name = self.version.partition("/")[0]
        return Loaded(dataclasses.replace(model_info(), name=name, fingerprint=self.version))

    def attach(self, slots: int, area: Area) -> None:
        """Map nothing."""

    async def warm_up(self) -> Ready | None:
        """Run nothing."""
        self.fleet.steps.append(f"ready {self.version}")
        return Ready(8, {1: 0.001, 8: 0.002}, {"name": "torch"}, {})

    async def run(self, batch: Sequence[Job]) -> BatchDone:
        """Answer a batch in the next iteration of the event loop."""
        await asyncio.sleep(0)
        return BatchDone(0, tuple(np.full(4, self.number, np.float32).tobytes() for _ in batch), 0.001)

    async def close(self) -> None:
        """End the process."""
        if not self.closed:
            self.fleet.steps.append(f"end {self.version}")
        self.closed = True


class User:
    """An HTTP process: it confirms what the test lets it confirm."""

    def __init__(self, seen: int = 0) -> None:
        self.seen = seen
        self.used: set[int] = set()

    def uses(self, model: int) -> bool:
        """Return whether the test has named this model."""
        return model in self.used


def scripted(monkeypatch: pytest.MonkeyPatch) -> Fleet:
    """Make all device processes scripted, and restarts immediate."""
    fleet = Fleet()
    monkeypatch.setattr(module, "DeviceProcess", Device)
    monkeypatch.setattr(module, "BACKOFF_S", (0.0,))
    monkeypatch.setattr(Device, "fleet", fleet, raising=False)
    return fleet


def write_repository(folder: Path, *versions: str) -> Path:
    """A repository with these `NAME/VERSION` on disk; scripted device processes do not read the files."""
    for one in versions:
        (folder / one).mkdir(parents=True)
        (folder / one / "model.safetensors").touch()
    return folder


@asynccontextmanager
async def running(*, ready: bool = True, **settings: Any) -> AsyncIterator[Registry]:
    """A registry at work. `ready`: wait until all models are ready or have failed."""
    wanted = {"device": "cpu", "queue_images": SLOTS} | settings
    registry = Registry(Settings.model_validate(wanted), Metrics(queue_capacity=SLOTS), "")
    task = asyncio.create_task(registry.run())
    try:
        if ready:
            await until(lambda: all(one.phase != "starting" for one in registry.state.models))
        yield registry
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await registry.close()


async def until(condition: Callable[[], object]) -> None:
    """Run the event loop until the condition is true."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def quiet() -> None:
    """Run everything on the event loop that is ready."""
    for _ in range(50):
        await asyncio.sleep(0)


def model(registry: Registry, name: str) -> ModelState:
    """The state of a loaded model."""
    found = registry.state.find(name)
    assert found is not None
    return found


async def index(registry: Registry) -> dict[str, str]:
    """The state of every known version, with its reason if there is one."""
    entries = await registry.index()
    return {f"{one.name}/{one.version}": f"{one.state}: {one.reason}".removesuffix(": ") for one in entries}


async def until_indexed(registry: Registry, version: str, state: str) -> None:
    """Wait until the index says this of a version."""
    async with asyncio.timeout(10):
        while (await index(registry))[version] != state:
            await asyncio.sleep(0.001)


def submit(registry: Registry, key: int) -> Job:
    """Queue a job for a loaded model."""
    loop = asyncio.get_running_loop()
    [slot] = registry.slots.acquire(1)
    done: asyncio.Future[Result] = loop.create_future()
    job = Job(slot, Task("embed"), loop.time(), done, model=key)
    done.add_done_callback(lambda _: registry.slots.release(slot))
    registry.submit(job)
    return job


async def answered_by(registry: Registry, key: int) -> int:
    """The number of the device process that answers a job for this model."""
    async with asyncio.timeout(10):
        return int((await submit(registry, key).done).values[0])


def blocks(registry: Registry) -> int:
    """The memory that the pixels of all models take."""
    return os.fstat(registry.slots.descriptor).st_blocks
