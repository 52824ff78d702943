"""With two batches in flight each call gets its own result and time limit, and the error if the process is lost."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import subprocess
import time
from collections.abc import AsyncIterator
from typing import cast

import numpy as np
import pytest

from service import ipc
from service.devices.messages import Attach, BatchDone, BatchFailed, FromDevice, Ready, RunBatch, ToDevice, WarmUp
from service.devices.process import BatchError, DeviceLost, DeviceProcess
from service.jobs import Area, Job, Task
from service.settings import Settings

pytestmark = pytest.mark.anyio


class FakeProcess:
    """An operating-system process that ends when it is told to."""

    killed = False

    def poll(self) -> int:
        """The exit status: the process has ended."""
        return -9

    def kill(self) -> None:
        """Record that the process was killed."""
        self.killed = True


class Connected(DeviceProcess):
    """A device process whose other end is this test: it reads messages and answers them."""

    def __init__(self) -> None:
        super().__init__(Settings(), "cuda:0", slots_descriptor=-1, module="")
        self.process = FakeProcess()
        self.spawned = asyncio.Event()

    def _spawn(self, descriptor: int) -> subprocess.Popen[bytes]:
        self.theirs = socket.socket(fileno=os.dup(descriptor))
        self.theirs.setblocking(False)
        self.spawned.set()
        return cast("subprocess.Popen[bytes]", self.process)

    async def sent(self) -> object:
        """The next message that the process receives."""
        await self.spawned.wait()
        (length,) = ipc.LENGTH.unpack(await self._exactly(ipc.LENGTH.size))
        return ipc.decoder(ToDevice).decode(await self._exactly(length))

    async def _exactly(self, size: int) -> bytes:
        read = b""
        while len(read) < size:
            read += await asyncio.get_running_loop().sock_recv(self.theirs, size - len(read))
        return read

    async def order(self) -> RunBatch:
        """The next message that the process receives, which is a batch."""
        message = await self.sent()
        assert isinstance(message, RunBatch)
        return message

    def says(self, message: FromDevice) -> None:
        """Send a message as the process."""
        self.theirs.sendall(ipc.pack(message))


@pytest.fixture
async def device() -> AsyncIterator[Connected]:
    """A device process that has warmed up."""
    device = Connected()
    ours = asyncio.create_task(device.start())
    await device.sent()
    ours.cancel()
    device.attach(4, Area(0, 8))
    warm = asyncio.create_task(device.warm_up())
    assert isinstance(await device.sent(), Attach)
    assert isinstance(await device.sent(), WarmUp)
    device.says(Ready(8, {1: 0.001}, {}, {}))
    await warm
    yield device
    device.theirs.close()
    await device.close()


def job(slot: int) -> Job:
    """A job with one image."""
    return Job(slot, Task("embed"), 0.0, asyncio.get_running_loop().create_future())


def done(order: RunBatch) -> BatchDone:
    """A result whose row is the number of the slot."""
    return BatchDone(order.id, tuple(np.array([slot], np.float32).tobytes() for slot in order.slots), 0.001)


async def test_each_call_gets_its_own_answer(device: Connected) -> None:
    """Two batches can be in flight, and each call gets its own result."""
    calls = [asyncio.create_task(device.run([job(slot)])) for slot in (5, 7)]
    orders = [await device.order() for _ in calls]
    assert [(5,), (7,)] == [order.slots for order in orders]
    for order in orders:
        device.says(done(order))

    rows = [(await call).rows[0] for call in calls]
    assert [5.0, 7.0] == [float(np.frombuffer(row, np.float32)[0]) for row in rows if row is not None]


async def test_a_failed_batch_leaves_the_other_alone(device: Connected) -> None:
    """A failed batch is found by its id, and the other batch gets its result."""
    calls = [asyncio.create_task(device.run([job(slot)])) for slot in (5, 7)]
    first, second = [await device.order() for _ in calls]
    device.says(BatchFailed(first.id, "error", "refused"))
    device.says(done(second))

    with pytest.raises(BatchError, match="refused"):
        await calls[0]
    assert 1 == len((await calls[1]).rows)


async def test_both_batches_learn_that_the_process_ended(device: Connected) -> None:
    """Every batch in flight fails with the reason, and so does every later one."""
    calls = [asyncio.create_task(device.run([job(slot)])) for slot in (5, 7)]
    for _ in calls:
        await device.order()
    device.theirs.shutdown(socket.SHUT_RDWR)

    for call in calls:
        with pytest.raises(DeviceLost, match="killed by signal 9"):
            await call
    with pytest.raises(DeviceLost):
        await device.run([job(1)])


async def test_the_watchdog_counts_from_the_end_of_the_batch_before(device: Connected) -> None:
    """The watchdog's time begins when the batch before has ended; after it the process is killed."""
    device.watchdog_s = 0.3
    calls = [asyncio.create_task(device.run([job(slot)])) for slot in (5, 7)]
    first, second = [await device.order() for _ in calls]
    await asyncio.sleep(0.2)
    device.says(done(first))
    await calls[0]
    await asyncio.sleep(0.2)
    device.says(done(second))
    await calls[1]

    with pytest.raises(DeviceLost, match=r"hangs: a batch of 1 took longer than 0\.3 s"):
        await device.run([job(9)])
    await device.close()
    assert device.process.killed


async def test_a_pause_of_the_parent_is_not_a_hang_of_the_device(device: Connected) -> None:
    """After a pause of this program the device's answer is read before the device counts as hung."""
    device.watchdog_s = 0.3
    call = asyncio.create_task(device.run([job(5)]))
    order = await device.order()
    time.sleep(0.5)  # noqa: ASYNC251 - as SIGSTOP does, it stops the event loop
    device.says(done(order))

    assert 1 == len((await call).rows)


async def test_a_process_that_cannot_be_spawned_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Running out of descriptors, processes or memory is reported with the reason of the system."""

    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("service.devices.process.subprocess.Popen", refused)
    with pytest.raises(DeviceLost, match="cannot be started: .*Too many open files"):
        await DeviceProcess(Settings(), "cpu", -1, "service.devices.worker").start()
