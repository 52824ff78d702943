"""Dispatchers of two models on one device, with scripted device processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from service.devices.context import Context
from service.devices.dispatcher import Dispatcher
from service.devices.messages import BatchDone, Ready
from service.devices.process import DeviceLost, DeviceProcess
from service.devices.slots import Slots
from service.devices.turns import Turns, background
from service.jobs import Job
from tests.service.devices.scripted_devices import SLOTS, context_of, outcomes, put, rows

pytestmark = pytest.mark.anyio

DEVICE = "cpu"


class OneDevice:
    """What the processes of all models do on one device."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.running: list[str] = []  # the models of the batches that are with the device
        self.batches: list[str] = []  # the models of all batches, in order
        self.most = 0  # batches at a time


class Process:
    """A scripted process of one model. It is lost with its batch number `dies_at`."""

    def __init__(self, device: OneDevice, model: str, dies_at: int = 0) -> None:
        self.lost: DeviceLost | None = None
        self._device, self._model, self._left = device, model, dies_at

    async def run(self, batch: Sequence[Job]) -> BatchDone:
        device = self._device
        device.running.append(self._model)
        device.batches.append(self._model)
        device.most = max(device.most, len(device.running))
        assert {self._model} == set(device.running)
        try:
            await asyncio.sleep(0.002)
            self._left -= 1
            if self._left == 0:
                raise DeviceLost("killed")
            return rows(batch)
        finally:
            device.running.remove(self._model)


@asynccontextmanager
async def serving(device: OneDevice, model: str, depth: int = 1, dies_at: int = 0) -> AsyncIterator[Context]:
    """Let a dispatcher serve one model, with at most two images in a batch."""
    slots = Slots(SLOTS)
    context = context_of(slots, device.turns)
    process = cast(DeviceProcess, Process(device, model, dies_at))
    dispatcher = Dispatcher(context, process, DEVICE, Ready(2, {1: 0.002, 2: 0.002}, {}, {}, depth=depth))
    task = asyncio.create_task(dispatcher.serve())
    try:
        yield context
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        slots.close()


def done(*jobs: Job) -> list[asyncio.Future[Any]]:
    """The futures of jobs."""
    return [job.done for job in jobs]


@pytest.mark.parametrize("depth", [1, 2])
async def test_two_models_take_turns_on_a_device(depth: int) -> None:
    """The device never has batches of two models at a time, and neither waits until the other has no jobs."""
    device = OneDevice()
    async with serving(device, "a", depth) as one, serving(device, "b", depth) as other:
        answers = await outcomes(done(*put(one, SLOTS), *put(other, SLOTS)))

    assert all(hasattr(answer, "values") for answer in answers)
    assert {"a": 8, "b": 8} == {model: device.batches.count(model) for model in "ab"}
    assert "b" in device.batches[: depth + 1]
    assert device.most <= depth


async def test_an_idle_model_leaves_the_device_to_the_other() -> None:
    """A model without jobs, or whose waiting jobs are cancelled, delays nothing, and later gets its turn at once."""
    device = OneDevice()
    async with serving(device, "a", depth=2) as one, serving(device, "b") as other:
        busy = put(one, SLOTS)
        for job in put(other, 3):
            await asyncio.sleep(0)
            other.queue.discard(job)
        await outcomes(done(*busy))
        assert ["a"] * 8 == device.batches
        assert 2 == device.most

        await outcomes(done(*put(other, 2)))
        assert "b" == device.batches[-1]


async def test_a_lost_process_does_not_keep_its_turn() -> None:
    """When the process of one model is lost during a batch, the other model continues."""
    device = OneDevice()
    async with serving(device, "a", dies_at=1) as one, serving(device, "b") as other:
        put(one, SLOTS)
        answers = await outcomes(done(*put(other, SLOTS)))
        assert not device.turns.of(DEVICE).shared

    assert all(hasattr(answer, "values") for answer in answers)
    assert ["a"] + ["b"] * 8 == device.batches


async def test_work_in_the_background_has_the_device_for_itself() -> None:
    """While work in the background has its turn, no batch runs; the batches run between its passes and after them."""
    device = OneDevice()
    async with serving(device, "a", depth=2) as context:
        async with background(device.turns.of(DEVICE), 1.0):
            jobs = put(context, SLOTS)
            await asyncio.sleep(0.005)
            assert [] == device.batches
        async with background(device.turns.of(DEVICE), 1.0):
            ran = len(device.batches)
            await asyncio.sleep(0.005)
            assert [] == device.running
            assert 1 <= ran == len(device.batches)
        await outcomes(done(*jobs))

    assert ["a"] * 8 == device.batches
