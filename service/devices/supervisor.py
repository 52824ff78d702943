"""Keeps one device process running: starts it, checks it, lets it serve, and starts another when it is lost.

`service.devices.dispatcher` gives the process its batches.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from contextlib import AbstractAsyncContextManager

from service.devices.context import Context
from service.devices.dispatcher import Dispatcher
from service.devices.messages import Loaded, Ready
from service.devices.process import DeviceLost, DeviceProcess
from service.devices.turns import background
from service.jobs import Job
from service.status import DeviceStatus, ModelInfo
from service.system import memory

log = logging.getLogger("vim.device")

BACKOFF_S = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)  # before the first, second, ... restart in a row; the last one repeats
STABLE_S = 60.0  # a process that was up for longer does not count as a failed restart
HANG_S, HANG_FACTOR = 10.0, 10.0  # the watchdog: seconds, or times the slowest warm-up batch if more
LOADING_WEIGHT = 0.25  # a model that loads gets a fifth of a device that another model keeps busy
RESTART_FACTOR, RESTART_S = 10.0, 60.0  # a restart that takes ten times the first start has failed


class RestartsExhausted(Exception):  # noqa: N818 - an event
    """The device process could not be restarted; the message has the number of attempts and the last error."""


def check_memory(model: ModelInfo, images: int, available: int | None) -> None:
    """Raise DeviceLost if the slots of `images` images would take more than half of the available memory."""
    each = model.image_size**2 * 3
    needed = (images + 1) * each  # with the canary image
    if available is not None and needed > available // 2:
        raise DeviceLost(
            f"VIM_QUEUE_IMAGES={images} images of {model.image_size} px take {needed / 1e9:.1f} GB of "
            f"shared memory, more than half of the {available / 1e9:.1f} GB that are available; "
            f"set it to at most {max(1, available // 2 // each - 1)}"
        )


class Supervisor:
    """One configured device and all the processes that serve it in turn."""

    def __init__(self, context: Context, name: str) -> None:
        self.name = name
        self.up = False
        self.restarts = 0
        self.last_reason = ""
        self.loaded: Loaded | None = None  # what the latest process reported
        self._context = context
        self._process: DeviceProcess | None = None
        self._dispatcher: Dispatcher | None = None
        self._ready: Ready | None = None
        self._limit: int | None = None  # the smallest batch limit that any process had
        self._in_a_row = 0  # restarts since a batch last ran, or a process last stayed up for a while
        self._up_since = 0.0
        self._first_start_s = 0.0

    async def run(self) -> None:
        """Serve until cancelled. Raises DeviceLost if the first start fails, RestartsExhausted later."""
        dispatcher = await self._start()
        while True:
            try:
                await asyncio.create_task(dispatcher.serve(), name=f"dispatch {self.name}")
            except DeviceLost as lost:
                dispatcher = await self._restart(lost)

    async def close(self) -> None:
        """End the device process."""
        if self._process is not None:
            await self._process.close()

    @property
    def running(self) -> list[Job]:
        """The jobs that are with the device now."""
        return self._dispatcher.running if self._dispatcher else []

    @property
    def status(self) -> DeviceStatus:
        """What `/info` shows of this device."""
        ready = self._ready
        return DeviceStatus(
            name=self.name,
            up=self.up,
            restarts=self.restarts,
            last_reason=self.last_reason,
            limit=self._dispatcher.limit if self._dispatcher else 1,
            scan=ready.scan if ready else {},
            runner=ready.runner if ready else {},
            batch_seconds=ready.batch_seconds if ready else {},
            memory=ready.memory if ready else {},
            host_bytes=ready.host_bytes if ready else 0,
        )

    async def _start(self) -> Dispatcher:
        start, context = time.monotonic(), self._context
        process = DeviceProcess(context.settings, self.name, context.slots.descriptor, context.worker, context.wake)
        self._process = process
        loaded = await process.start(background=context.background and not self._first_start_s)
        check_memory(loaded.model, context.settings.queue_images, memory.available_bytes())
        area = context.canary.prepare(loaded.model)
        if self.loaded is None:
            self.loaded = loaded
            context.changed.set()
        process.attach(context.slots.total, area)
        ready = None
        while ready is None:
            async with self._turn(loaded.model):
                ready = await process.warm_up()
        async with self._turn(loaded.model):
            await context.canary.check(process)
        process.watchdog_s = self._watchdog_s(ready)
        self._ready, self._dispatcher = ready, Dispatcher(context, process, self.name, ready)
        if self._limit is not None:
            self._dispatcher.limit = min(self._limit, ready.max_batch)
        for kind, size in ready.memory.items():
            context.metrics.device_memory(kind, size)
        self._first_start_s = self._first_start_s or time.monotonic() - start
        log.info("%s is up after %.1f s", self.name, time.monotonic() - start)
        self._change(up=True)
        return self._dispatcher

    def _turn(self, model: ModelInfo) -> AbstractAsyncContextManager[None]:
        """A turn among the models that serve on this device. A GPU runs such a pass beside theirs; a CPU does not."""
        if model.device.type != "cpu":
            return contextlib.nullcontext()
        return background(self._context.turns.of(self.name), LOADING_WEIGHT)

    def _watchdog_s(self, ready: Ready) -> float:
        if self._context.settings.watchdog_ms is not None:
            return self._context.settings.watchdog_ms / 1000
        return max(HANG_S, HANG_FACTOR * max(ready.batch_seconds.values()))

    async def _restart(self, lost: DeviceLost) -> Dispatcher:
        """Start again, with longer and longer pauses. Raises RestartsExhausted after VIM_MAX_RESTARTS in a row."""
        while True:
            await self._record_loss(lost)
            if self._in_a_row > self._context.settings.max_restarts:
                attempts = self._context.settings.max_restarts
                raise RestartsExhausted(f"{self.name}: {attempts} restarts in a row failed; the last: {lost}") from lost
            await asyncio.sleep(BACKOFF_S[min(self._in_a_row, len(BACKOFF_S)) - 1])
            try:
                async with asyncio.timeout(max(RESTART_S, RESTART_FACTOR * self._first_start_s)):
                    return await self._start()
            except DeviceLost as again:
                lost = again
            except TimeoutError:
                lost = DeviceLost("the restart took too long")

    async def _record_loss(self, lost: DeviceLost) -> None:
        stable = self.up and time.monotonic() - self._up_since > STABLE_S
        served = self.up and self._dispatcher is not None and self._dispatcher.ran
        self._in_a_row = 1 if stable or served else self._in_a_row + 1
        self._limit = self._dispatcher.limit if self._dispatcher else None
        self.restarts += 1
        self.last_reason = str(lost)
        log.error("%s is lost: %s; restart %d", self.name, lost, self.restarts)
        self._context.metrics.device_lost(self.name)
        self._change(up=False)
        await self.close()

    def _change(self, *, up: bool) -> None:
        self.up, self._up_since = up, time.monotonic()
        self._context.metrics.device_up(self.name, up)
        self._context.metrics.batch_limit(self.name, self._dispatcher.limit if self._dispatcher else 1)
        self._context.changed.set()
