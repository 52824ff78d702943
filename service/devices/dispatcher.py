"""Gives one device process its batches: take a batch from the queue, run it, settle its jobs.

One batch at a time, unless the device can take in the pixels of the next batch while it computes (pipelining). Then the
next batch is sent when it is full, or when the running one is about to end; until then waiting images form a larger
batch. A batch with a suspect, an image whose batch has failed before, runs alone: if the device process ends again,
only this batch can be the cause. What happens to a failed batch is decided in `service.devices.retry`; which of several
models sends the next batch to a device, in `service.devices.turns`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from service.devices.context import Context
from service.devices.messages import BatchDone, Ready
from service.devices.process import BatchError, DeviceLost, DeviceProcess
from service.devices.retry import Failure, judge
from service.errors import NonFiniteOutput
from service.jobs import Job, Result

log = logging.getLogger("vim.device")

SMOOTHING = 0.2  # weight of the newest batch in the expected duration of its size


@dataclass(slots=True, eq=False)
class Batch:
    """A batch that a device process has."""

    jobs: tuple[Job, ...]
    began_at: float  # when it was sent, or when the batch before it ended, if that was later
    shared: bool = False  # another batch was with the device at some time

    @property
    def alone(self) -> bool:
        """Return whether the device must have no other batch at the same time."""
        return any(job.suspect for job in self.jobs)


class Pipeline:
    """The batches that one device process has, oldest first. Plain Python, no clock of its own.

    `batch_seconds`: the duration of each batch size in the warm-up. `lead_s`: how long before the expected end of the
    running batch the next one may be sent.
    """

    def __init__(self, depth: int = 1, lead_s: float = 0.0, batch_seconds: Mapping[int, float] | None = None) -> None:
        self.batches: list[Batch] = []
        self._depth = depth
        self._lead_s = lead_s
        self._seconds = dict(sorted((batch_seconds or {}).items()))

    @property
    def blocked(self) -> bool:
        """Return whether a batch must end before the next one may be sent."""
        return len(self.batches) >= self._depth or any(batch.alone for batch in self.batches)

    def hold_s(self, now: float) -> float:
        """Seconds that a batch which is not full should still be held back."""
        if not self.batches:
            return 0.0
        running = self.batches[0]
        return max(0.0, running.began_at + self._expected(len(running.jobs)) - self._lead_s - now)

    def begin(self, jobs: tuple[Job, ...], now: float) -> Batch:
        """Add a batch that is sent to the device."""
        batch = Batch(jobs, now, shared=bool(self.batches))
        for other in self.batches:
            other.shared = True
        self.batches.append(batch)
        return batch

    def end(self, batch: Batch, now: float) -> None:
        """Remove a batch that is answered or has failed; the time of the next batch begins."""
        self.batches.remove(batch)
        for waiting in self.batches[:1]:
            waiting.began_at = max(waiting.began_at, now)

    def ran(self, images: int, seconds: float) -> None:
        """Update the expected duration with a batch that ran."""
        size = self._size_for(images)
        known = self._seconds.get(size, seconds)
        self._seconds[size] = known + SMOOTHING * (seconds - known)

    def _expected(self, images: int) -> float:
        return self._seconds.get(self._size_for(images), 0.0)

    def _size_for(self, images: int) -> int:
        return next((size for size in self._seconds if size >= images), images)


class Dispatcher:
    """The batches of one device process, from its start to its end."""

    def __init__(self, context: Context, process: DeviceProcess, name: str, ready: Ready) -> None:
        self.limit = ready.max_batch  # images in a batch; falls when memory runs out
        self.ran = False  # true once a batch has run
        self.pipeline = Pipeline(ready.depth, ready.handover_s, ready.batch_seconds)
        self._context = context
        self._process = process
        self._name = name
        self._claim = context.turns.of(name).join(context.queue, context.wake)
        self._tasks: set[asyncio.Task[None]] = set()
        self._lost: DeviceLost | None = None  # set when a batch has failed with it

    @property
    def running(self) -> list[Job]:
        """The jobs that are with the device now."""
        return [job for batch in self.pipeline.batches for job in batch.jobs]

    async def serve(self) -> None:
        """Take, run and settle batches until cancelled. Raises DeviceLost when the process is lost."""
        try:
            while True:
                batch = await self._take()
                task = asyncio.create_task(self._run(batch, tuple(self._tasks)))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        except asyncio.CancelledError:
            for task in tuple(self._tasks):
                task.cancel()
            raise
        finally:
            try:
                await self._finish()
            finally:
                self._claim.leave()

    async def _finish(self) -> None:
        """Wait for the batches that are with the device."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for batch in tuple(self.pipeline.batches):  # cancelled before its task began
            self._context.queue.give_back((batch.jobs,))
            self._end(batch)

    async def _take(self) -> Batch:
        """Wait for the next batch and for the device, and take it."""
        while True:
            self._check()
            if self.pipeline.blocked:
                await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
                continue
            now = time.monotonic()
            wait_s = self._context.queue.due_in(self.limit, now, self.pipeline.hold_s(now))
            if wait_s != 0:
                self._claim.rest()
            elif not self._claim.may_begin():
                wait_s = None
            elif jobs := self._context.queue.take(self.limit, now):
                return self._begin(tuple(jobs), now)
            await self._wait(wait_s)

    def _begin(self, jobs: tuple[Job, ...], now: float) -> Batch:
        """Count a batch. Its slots are held until the device no longer reads them."""
        for job in jobs:
            job.began_at = now
        self._context.slots.hold(*[job.slot for job in jobs])
        self._context.metrics.levels.batches += 1
        self._claim.begin()
        return self.pipeline.begin(jobs, now)

    async def _wait(self, timeout_s: float | None) -> None:
        wake = self._context.wake
        wake.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await wake.wait()

    def _check(self) -> None:
        """Raise DeviceLost if the process has ended, or if a batch has failed with DeviceLost."""
        if lost := self._process.lost or self._lost:
            raise lost

    async def _run(self, batch: Batch, ahead: tuple[asyncio.Task[None], ...]) -> None:
        try:
            await self._forward(batch, ahead)
        except DeviceLost as lost:
            self._lost = lost
        finally:
            self._end(batch)

    async def _forward(self, batch: Batch, ahead: tuple[asyncio.Task[None], ...]) -> None:
        try:
            if batch.alone and ahead:
                await asyncio.wait(ahead)
            self._check()
        except (DeviceLost, asyncio.CancelledError):  # while the batch waited for its turn; it never ran
            self._context.queue.give_back((batch.jobs,))
            raise
        try:
            self._settle(batch, await self._process.run(batch.jobs))
        except BatchError as error:
            if error.kind == "out_of_memory" and (len(batch.jobs) > 1 or not batch.shared):
                self._lower_limit(len(batch.jobs))
            self._retry(batch, error.kind)
        except DeviceLost:
            self._retry(batch, "device_lost")
            raise
        except asyncio.CancelledError:  # the service ends: these jobs are answered with the waiting ones
            self._context.queue.give_back((batch.jobs,))
            raise

    def _settle(self, batch: Batch, done: BatchDone) -> None:
        """Give every job its result."""
        self.ran = True
        size, seconds = len(batch.jobs), done.seconds
        waits = [batch.began_at - job.enqueued_at for job in batch.jobs]
        classes = [job.request_class for job in batch.jobs]
        self.pipeline.ran(size, seconds)
        self._context.queue.ran(size, seconds)
        self._context.metrics.batch(classes, waits, seconds)
        self._context.metrics.widened(done.widened)
        for job, row, wait in zip(batch.jobs, done.rows, waits, strict=True):
            if row is None:
                job.fail(NonFiniteOutput("the model gave NaN or infinity for this image"))
            elif not job.done.done():
                job.done.set_result(Result(np.frombuffer(row, np.float32), wait, seconds, size))

    def _end(self, batch: Batch) -> None:
        """The device no longer reads the batch's slots."""
        now = time.monotonic()
        self._claim.end(now - batch.began_at)
        self.pipeline.end(batch, now)
        self._context.metrics.levels.batches -= 1
        self._context.slots.release(*[job.slot for job in batch.jobs])
        self._context.wake.set()

    def _lower_limit(self, images: int) -> None:
        self.limit = max(1, min(self.limit, images // 2))
        self._context.metrics.batch_limit(self._name, self.limit)
        self._context.changed.set()
        log.warning(
            "%s: out of memory with %d images; batches of at most %d from now on", self._name, images, self.limit
        )

    def _retry(self, batch: Batch, failure: Failure) -> None:
        """Queue the jobs again, or fail the one image that caused the failure."""
        context, verdict = self._context, judge(batch.jobs, failure, company=batch.shared)
        context.metrics.batch_retried(failure, len(verdict.again))
        context.queue.give_back(verdict.again)
        context.wake.set()
        if verdict.culprit is None or verdict.error is None:
            return
        log.error("%s: one image failed alone (%s)", self._name, failure)
        verdict.culprit.fail(verdict.error)
        if failure == "device_lost":
            context.quarantine.add(context.canary.pixels[verdict.culprit.slot], time.monotonic())
            context.metrics.quarantined()
