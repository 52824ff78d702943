"""Keeps one device process running and fed: start, check, serve; when it is lost, give its work back and start again.

Whenever its device is free it takes the oldest jobs from the batcher. What to do with a batch that failed is decided in
`recovery`; this file carries it out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from service.devices.batcher import Batcher
from service.devices.canary import Canary
from service.devices.messages import BatchDone, Loaded
from service.devices.pipelining import Flight, Handover
from service.devices.process import BatchError, Device, DeviceLost
from service.devices.retry import Failure, Quarantine, judge
from service.devices.slots import Arena
from service.errors import NonFiniteOutput
from service.jobs import Job, Result
from service.settings import Settings
from service.telemetry.metrics import Metrics

log = logging.getLogger("vim.device")

BACKOFF_S = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)  # before the first, second, ... restart in a row; the last one repeats
STABLE_S = 60.0  # a process that was up for so long was no failed restart
HANG_S, HANG_FACTOR = 10.0, 10.0
RESTART_FACTOR, RESTART_S = 10.0, 60.0  # a restart that takes ten times the first start has failed


class RestartsExhausted(Exception):  # noqa: N818 - an event
    """The device process could not be brought back; the message says how often that was tried and what went wrong."""


@dataclass(slots=True)
class Shared:
    """What the supervisors of one service have in common."""

    settings: Settings
    arena: Arena
    batcher: Batcher
    metrics: Metrics
    quarantine: Quarantine
    arrived: asyncio.Event  # a job was queued, or a device was lost
    worker: str  # the module that runs as the device process
    on_loaded: Callable[[Loaded], Canary]
    on_change: Callable[[], None]


class Supervisor:
    """One configured device, through all the processes that serve it."""

    def __init__(self, shared: Shared, name: str) -> None:
        self.name = name
        self.up = False
        self.limit = 1  # images in a batch; falls when memory runs out
        self.restarts = 0
        self.last_reason = ""
        self.scan: dict[str, str] = {}
        self.batch_seconds: dict[int, float] = {}
        self.runner: dict[str, str] = {}
        self._shared = shared
        self._device: Device | None = None
        self._in_a_row = 0  # restarts since a batch last ran, or a process last stayed up for a while
        self._up_since = 0.0
        self._first_start_s = 0.0
        self._handover = Handover()
        self._lost: DeviceLost | None = None  # said by a batch

    async def run(self) -> None:
        """Serve until cancelled. Raises DeviceLost if the first start fails, RestartsExhausted later."""
        device = await self._start()
        while True:
            try:
                await self._serve(device)
            except DeviceLost as lost:
                device = await self._restart(lost)

    async def close(self) -> None:
        """End the device process."""
        if self._device is not None:
            await self._device.close()

    @property
    def running(self) -> tuple[Job, ...]:
        """The jobs that are on the device now."""
        return self._handover.jobs

    # --- starting and restarting ------------------------------------------------------------------------------

    async def _start(self) -> Device:
        start = time.monotonic()
        shared = self._shared
        device = Device(shared.settings, self.name, shared.arena.descriptor, shared.worker)
        device.on_lost = shared.arrived.set
        self._device = device
        loaded = await device.start()
        canary = shared.on_loaded(loaded)
        ready = await device.warm_up(shared.arena.total)
        await canary.check(device)
        self.limit = min(ready.max_batch, self.limit) if self.restarts else ready.max_batch
        self.scan, self.batch_seconds, self.runner = ready.scan, ready.batch_seconds, ready.runner
        self._handover, self._lost = Handover(ready.depth, ready.handover_s, ready.batch_seconds), None
        for kind, size in ready.memory.items():
            shared.metrics.device_memory(kind, size)
        device.watchdog_s = self._watchdog_s()
        self._first_start_s = self._first_start_s or time.monotonic() - start
        log.info("%s is up after %.1f s", self.name, time.monotonic() - start)
        self._change(up=True)
        return device

    def _watchdog_s(self) -> float:
        if self._shared.settings.watchdog_ms is not None:
            return self._shared.settings.watchdog_ms / 1000
        return max(HANG_S, HANG_FACTOR * max(self.batch_seconds.values()))

    async def _restart(self, lost: DeviceLost) -> Device:
        """Start again, with longer and longer pauses. Raises RestartsExhausted after VIM_MAX_RESTARTS in a row."""
        while True:
            await self._mourn(lost)
            if self._in_a_row > self._shared.settings.max_restarts:
                attempts = self._shared.settings.max_restarts
                raise RestartsExhausted(f"{self.name}: {attempts} restarts in a row failed; the last: {lost}") from lost
            await asyncio.sleep(BACKOFF_S[min(self._in_a_row, len(BACKOFF_S)) - 1])
            try:
                async with asyncio.timeout(max(RESTART_S, RESTART_FACTOR * self._first_start_s)):
                    return await self._start()
            except DeviceLost as again:
                lost = again
            except TimeoutError:
                lost = DeviceLost("the restart took too long")

    async def _mourn(self, lost: DeviceLost) -> None:
        if self.up and time.monotonic() - self._up_since > STABLE_S:
            self._in_a_row = 0
        self._in_a_row += 1
        self.restarts += 1
        self.last_reason = str(lost)
        log.error("%s is lost: %s; restart %d", self.name, lost, self.restarts)
        self._shared.metrics.device_lost(self.name)
        self._change(up=False)
        await self.close()

    def _change(self, *, up: bool) -> None:
        self.up, self._up_since = up, time.monotonic()
        self._shared.metrics.device_up(self.name, up)
        self._shared.metrics.batch_limit(self.name, self.limit)
        self._shared.on_change()

    # --- serving ----------------------------------------------------------------------------------------------

    async def _serve(self, device: Device) -> None:
        """The loop: whenever the device may have a batch, take one and let it fly."""
        flights: set[asyncio.Task[None]] = set()
        try:
            while True:
                batch = await self._next_batch(device, flights)
                task = asyncio.create_task(self._fly(device, self._begin(batch), tuple(flights)))
                flights.add(task)
                task.add_done_callback(flights.discard)
        except asyncio.CancelledError:
            for task in tuple(flights):
                task.cancel()
            raise
        finally:
            await asyncio.gather(*flights, return_exceptions=True)
            for flight in tuple(self._handover.flights):  # cancelled before it had begun
                self._end(flight)

    async def _next_batch(self, device: Device, flights: set[asyncio.Task[None]]) -> tuple[Job, ...]:
        batcher = self._shared.batcher
        while True:
            self._check(device)
            now = time.monotonic()
            room = self._handover.due_in(now, full=len(batcher) >= self.limit)
            due = batcher.due_in(self.limit, now)
            if room is None:
                await asyncio.wait(flights, return_when=asyncio.FIRST_COMPLETED)
            elif due is None or max(due, room) > 0:
                await self._arrival(None if due is None else max(due, room))
            elif batch := tuple(batcher.take(self.limit, now)):
                return batch

    async def _arrival(self, timeout_s: float | None) -> None:
        self._shared.arrived.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._shared.arrived.wait()

    def _check(self, device: Device) -> None:
        """Raise DeviceLost once the process has ended, or a batch has shown that it is of no use."""
        device.check()
        if self._lost is not None:
            raise self._lost

    def _begin(self, batch: tuple[Job, ...]) -> Flight:
        """The device holds the batch's slots while it may read them."""
        self._shared.metrics.inflight_batches(+1)
        now = time.monotonic()
        for job in batch:
            self._shared.arena.hold(job.slot)
            job.began_at = now
        return self._handover.begin(batch, now)

    def _end(self, flight: Flight) -> None:
        self._handover.end(flight, time.monotonic())
        self._shared.arrived.set()
        self._shared.metrics.inflight_batches(-1)
        for job in flight.jobs:
            self._shared.arena.release(job.slot)

    async def _fly(self, device: Device, flight: Flight, ahead: tuple[asyncio.Task[None], ...]) -> None:
        try:
            if flight.alone and ahead:
                await asyncio.wait(ahead)
            await self._run(device, flight)
        except DeviceLost as lost:
            self._lost = lost
        finally:
            self._end(flight)

    async def _run(self, device: Device, flight: Flight) -> None:
        try:
            self._check(device)
        except DeviceLost:  # while it waited for its turn: it was never with the device
            self._shared.batcher.give_back((flight.jobs,))
            raise
        try:
            self._settle(flight, await device.run(flight.jobs))
        except BatchError as error:
            if error.kind == "out_of_memory":
                self._learn_limit(len(flight.jobs))
            self._recover(flight, error.kind)
        except DeviceLost:
            self._recover(flight, "device_lost")
            raise
        except asyncio.CancelledError:  # the service ends: whoever ends it answers these with the waiting ones
            self._shared.batcher.give_back((flight.jobs,))
            raise

    def _settle(self, flight: Flight, done: BatchDone) -> None:
        self._in_a_row = 0
        batch = flight.jobs
        waits = [flight.began_at - job.enqueued_at for job in batch]
        self._handover.ran(len(batch), done.seconds)
        self._shared.batcher.ran(len(batch), done.seconds)
        classes = [job.request_class for job in batch]
        self._shared.metrics.batch(list(zip(classes, waits, strict=True)), done.seconds)
        for job, row, wait in zip(batch, done.rows, waits, strict=True):
            if row is None:
                job.fail(NonFiniteOutput("the model gave NaN or infinity for this image"))
            else:
                job.answer(Result(row, wait, done.seconds, len(batch)))

    def _learn_limit(self, images: int) -> None:
        self.limit = max(1, min(self.limit, images // 2))
        self._shared.metrics.batch_limit(self.name, self.limit)
        log.warning(
            "%s: out of memory with %d images; batches of at most %d from now on", self.name, images, self.limit
        )

    def _recover(self, flight: Flight, failure: Failure) -> None:
        """Give the work back to whoever is free first, or fail the one image that is to blame."""
        verdict = judge(flight.jobs, failure, company=flight.shared)
        self._shared.metrics.batch_retried(failure, len(verdict.again))
        self._shared.batcher.give_back(verdict.again)
        self._shared.arrived.set()
        if verdict.culprit is None or verdict.error is None:
            return
        log.error("%s: one image failed alone (%s)", self.name, failure)
        verdict.culprit.fail(verdict.error)
        if failure == "device_lost":
            self._shared.quarantine.add(self._shared.arena.pixels.slot(verdict.culprit.slot), time.monotonic())
            self._shared.metrics.quarantined()
