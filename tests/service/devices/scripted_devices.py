"""Scripted device processes, and a supervisor that uses them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from service.devices import supervisor as module
from service.devices.batcher import Batcher
from service.devices.canary import Canary
from service.devices.context import Context
from service.devices.messages import BatchDone, Loaded, Ready
from service.devices.process import DeviceLost
from service.devices.slots import Slots
from service.devices.supervisor import Supervisor
from service.devices.turns import Turns
from service.jobs import Area, Job, RequestClass, Task
from service.settings import Settings
from service.status import DeviceInfo, ModelInfo
from service.telemetry.metrics import Metrics

Behaviour = Callable[[Sequence[Job]], BatchDone]


def rows(batch: Sequence[Job]) -> BatchDone:
    """Answer a batch: the row of each job is its slot."""
    return BatchDone(0, tuple(np.full(4, job.slot + 1, np.float32).tobytes() for job in batch), 0.001)


def model_info(device: str = "cpu", dtype: str = "float32") -> ModelInfo:
    """The description of a model for images of 8 x 8 pixels."""
    return ModelInfo(
        name="m",
        family="vim",
        fingerprint="f",
        classes=3,
        scores="softmax",
        embedding_dim=4,
        mean_embedding_dim=4,
        image_size=8,
        preprocess={},
        labels=(),
        labels_source="",
        in_domain=False,
        source="",
        weights="",
        parameters=0,
        config={},
        assumptions=(),
        dtype=dtype,
        device=DeviceInfo(device),
        scan={},
        versions={},
    )


class Script:
    """The behaviour of the next device processes, one for each start; the last one repeats."""

    def __init__(self, *behaviours: Behaviour | DeviceLost) -> None:
        self.behaviours = list(behaviours)
        self.started = 0
        self.batches: list[int] = []
        self.depth, self.largest = 1, 8
        self.out: set[int] = set()  # the first slots of the batches that are with the device
        self.company: list[set[int]] = []  # the same, recorded when a batch arrived
        self.steps: list[str] = []  # of all starts
        self.slowest_s = 0.001  # of the warm-up's batches
        self.devices: list[FakeDevice] = []

    def next(self) -> Behaviour | DeviceLost:
        self.started += 1
        return self.behaviours[min(self.started, len(self.behaviours)) - 1]


class FakeDevice:
    """A scripted `service.devices.process.DeviceProcess`."""

    script: Script

    def __init__(self, *_: Any) -> None:
        self.behaviour = self.script.next()
        self.script.devices.append(self)
        self.watchdog_s: float | None = None
        self.lost: DeviceLost | None = None

    async def start(self, *, background: bool = False) -> Loaded:
        self.script.steps.append("load")
        if isinstance(self.behaviour, DeviceLost):
            raise self.behaviour
        return Loaded(model_info())

    def attach(self, slots: int, area: Area) -> None:
        """Map nothing."""

    async def warm_up(self) -> Ready | None:
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

    async def close(self) -> None:
        """Close nothing."""


SLOTS = 16
CANARY = SLOTS


class Supervised(Supervisor):
    """A supervisor at work, with its context and its task."""

    task: asyncio.Task[None]

    def __init__(self, context: Context, name: str, metrics: Metrics) -> None:
        super().__init__(context, name)
        self.context = context
        self.metrics = metrics


def context_of(slots: Slots, turns: Turns | None = None, metrics: Metrics | None = None, **settings: Any) -> Context:
    """The context of one model."""
    return Context(
        settings=Settings.model_validate(settings),
        metrics=(metrics or Metrics(queue_capacity=SLOTS)).model("m"),
        slots=slots,
        queue=Batcher(),
        worker="",
        canary=Canary(slots),
        turns=turns or Turns(),
    )


@asynccontextmanager
async def supervised(monkeypatch: pytest.MonkeyPatch, script: Script, **settings: Any) -> AsyncIterator[Supervised]:
    """Run a supervisor with scripted devices, without pauses."""
    monkeypatch.setattr(module, "DeviceProcess", FakeDevice)
    monkeypatch.setattr(module, "BACKOFF_S", (0.0,))
    monkeypatch.setattr(FakeDevice, "script", script, raising=False)
    slots, metrics = Slots(SLOTS), Metrics(queue_capacity=SLOTS)
    context = context_of(slots, metrics=metrics, **settings)
    supervisor = Supervised(context, "cpu", metrics)
    task = asyncio.create_task(supervisor.run())
    supervisor.task = task
    try:
        yield supervisor
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        slots.close()


def submit(
    supervisor: Supervised, count: int, request_class: RequestClass = "interactive"
) -> list[asyncio.Future[Any]]:
    """Queue jobs, each in a slot of its own."""
    return [job.done for job in put(supervisor.context, count, request_class)]


def put(context: Context, count: int, request_class: RequestClass = "interactive") -> list[Job]:
    """Queue jobs of one model, each in a slot of its own."""
    loop = asyncio.get_running_loop()
    slots = context.slots.acquire(count)
    queued = [Job(slot, Task("embed"), loop.time(), loop.create_future(), request_class) for slot in slots]
    for job in queued:
        context.queue.put(job)
    context.wake.set()
    return queued


async def outcomes(futures: list[asyncio.Future[Any]]) -> list[Any]:
    """The results and errors of jobs, in order."""
    async with asyncio.timeout(10):
        return await asyncio.gather(*futures, return_exceptions=True)


def dies(batch: Sequence[Job]) -> BatchDone:
    """Act as a process that ends during the batch."""
    raise DeviceLost("killed")


def dies_of(slot: int) -> Behaviour:
    """Act as a process that ends when a batch has the image of this slot."""

    def behaviour(batch: Sequence[Job]) -> BatchDone:
        return dies(batch) if slot in [job.slot for job in batch] else rows(batch)

    return behaviour
