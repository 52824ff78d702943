"""One request through the service: slots, decoding, queue, device, results. The only file that knows the whole way.

take → decode → queue → run → settle
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np

from model.preprocess import Preprocess
from service import cpus, images
from service.arena import Arena
from service.batcher import Batcher
from service.device import Device, DeviceLost
from service.errors import (
    DeadlineExceeded,
    Draining,
    NoClassifier,
    NonFiniteOutput,
    NotReady,
    ServiceError,
)
from service.jobs import Job, Result, Task, Timings
from service.messages import BatchDone, Loaded
from service.metrics import Metrics
from service.settings import Settings

log = logging.getLogger("vim.engine")

T = TypeVar("T")
State = Literal["starting", "ready", "draining", "failed"]
Outcome = Result | ServiceError


@dataclass(frozen=True, slots=True)
class Answer:
    """One outcome for each image of a request, in order, and where the time went."""

    outcomes: list[Outcome]
    timings: Timings

    @property
    def failed(self) -> int:
        """How many images have an error instead of a result."""
        return sum(isinstance(outcome, ServiceError) for outcome in self.outcomes)


class Engine:
    """Owns the arena, the queue, the decode threads and the device process of one application."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.settings = settings
        self.metrics = metrics
        self.state: State = "starting"
        self.reason = "the model is being loaded"
        self.on_failure: Callable[[], None] = lambda: None
        self.loaded: Loaded
        self._arena = Arena(settings.queue_images)
        self._batcher = Batcher(settings.max_wait_ms / 1000)
        self._devices = [Device(settings, name, self._arena.descriptor) for name in settings.devices]
        self._arrived = asyncio.Event()
        for device in self._devices:
            device.on_lost = self._arrived.set
        self._threads = ThreadPoolExecutor(settings.threads or cpus.available_cpus(), thread_name_prefix="decode")
        self._preprocess: Preprocess
        self._limits = images.DecodeLimits(max_pixels=settings.max_pixels)
        self._main: asyncio.Task[None] | None = None
        self._requests = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._batches_out = 0
        self._accepting = True

    # --- life cycle -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin loading in the background; `state` tells when requests are served."""
        self._main = asyncio.create_task(self._live(), name="engine")

    def drain(self) -> None:
        """Say that the end is near: readiness is false from here on; requests are still served until `close`."""
        if self.state != "failed":
            self._enter("draining", "the service is shutting down")

    async def close(self) -> None:
        """Finish what was accepted, within the drain time-out, then end the device process."""
        self.drain()
        self._accepting = False
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), self.settings.drain_timeout_ms / 1000)
        self._refuse(self._batcher.take(len(self._batcher)), Draining("shut down before this image had its turn"))
        if self._main is not None:
            self._main.cancel()
            await asyncio.gather(self._main, return_exceptions=True)
        await asyncio.gather(*(device.close() for device in self._devices))
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._arena.close()

    @property
    def info(self) -> dict[str, Any]:
        """What the device process said of itself; raises NotReady before it did."""
        if not hasattr(self, "loaded"):
            raise NotReady(self.reason, retry_after_s=1)
        return self.loaded.info

    async def _live(self) -> None:
        try:
            await self._load()
            async with asyncio.TaskGroup() as group:
                for device in self._devices:
                    group.create_task(self._serve(device))
        except* DeviceLost as lost:
            self._fail(str(lost.exceptions[0]))
        except* Exception:
            log.exception("the engine stopped")
            self._fail("the engine stopped; the log has the details")

    async def _load(self) -> None:
        start = time.monotonic()
        self.loaded, *_ = await asyncio.gather(*(device.start() for device in self._devices))
        self._preprocess = Preprocess.from_dict(self.loaded.preprocess)
        self._arena.map(self.loaded.size)
        self._enter("starting", "the model is being warmed up")
        warm, *_ = await asyncio.gather(*(device.warm_up(self._arena.slots) for device in self._devices))
        self.loaded.info.update(scan=warm.scan, batch_seconds=warm.batch_seconds)
        self._count_loaded(time.monotonic() - start)
        if self.state == "starting":
            self._enter("ready", "")
        log.info("ready in %.1f s: %s", time.monotonic() - start, self.loaded.info["model"]["name"])

    def _count_loaded(self, seconds: float) -> None:
        info = self.loaded.info
        version, device = info["model"]["fingerprint"], info["device"]["name"]
        self.metrics.model_loaded(version=version, device=device, dtype=info["dtype"], seconds=seconds)

    async def _serve(self, device: Device) -> None:
        """The loop: whenever a device is free it gets the oldest jobs, up to its largest batch."""
        while True:
            batch = await self._next_batch(device)
            start = time.monotonic()
            self._on_device(+1)
            for job in batch:
                self._arena.hold(job.slot)
            try:
                self._settle(batch, await device.run(batch), start)
            except ServiceError as error:
                self._refuse(batch, error)
            except DeviceLost:
                self._refuse(batch, NotReady("the device process ended while it ran this image", retry_after_s=1))
                raise
            finally:
                self._on_device(-1)
                for job in batch:
                    self._arena.release(job.slot)

    def _on_device(self, change: int) -> None:
        self._batches_out += change
        self.metrics.inflight_batches(self._batches_out)

    async def _next_batch(self, device: Device) -> list[Job]:
        limit = self.loaded.max_batch
        while (wait := self._batcher.due_in(limit, time.monotonic())) != 0:
            device.check()
            self._arrived.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), wait)
        return self._batcher.take(limit)

    def _settle(self, batch: list[Job], done: BatchDone, start: float) -> None:
        waits = [start - job.enqueued_at for job in batch]
        self._batcher.ran(len(batch), done.seconds)
        self.metrics.batch(len(batch), waits, done.seconds)
        for job, row, wait in zip(batch, done.rows, waits, strict=True):
            if job.done.done():  # its client left or its deadline passed
                continue
            if row is None:
                job.done.set_exception(NonFiniteOutput("the model gave NaN or infinity for this image"))
            else:
                job.done.set_result(Result(row, wait, done.seconds, len(batch)))

    def _refuse(self, batch: Sequence[Job], error: ServiceError) -> None:
        for job in batch:
            if not job.done.done():
                job.done.set_exception(error)

    def _fail(self, reason: str) -> None:
        self._enter("failed", reason)
        log.error("%s", reason)
        self._refuse(self._batcher.take(len(self._batcher)), NotReady(reason))
        self.on_failure()

    def _enter(self, state: State, reason: str) -> None:
        self.state, self.reason = state, reason
        self.metrics.ready(state == "ready")

    # --- requests ---------------------------------------------------------------------------------------------

    async def infer(self, items: Sequence[bytes | ServiceError], task: Task) -> Answer:
        """Decode and run every image. Raises ServiceError for the request; an image's own error is its outcome."""
        self.check(task)
        slots = self._arena.acquire(len(items), self._batcher.seconds_for(self._arena.in_use))
        self._count_requests(+1)
        start = time.monotonic()
        try:
            async with asyncio.timeout(self.settings.request_timeout_ms / 1000):
                done = await _gather([self._one(item, slot, task) for item, slot in zip(items, slots, strict=True)])
        except TimeoutError:
            limit = f"{self.settings.request_timeout_ms} ms (VIM_REQUEST_TIMEOUT_MS)"
            raise DeadlineExceeded(f"no answer within {limit}") from None
        finally:
            for slot in slots:
                self._arena.release(slot)
            self._count_requests(-1)
        self._count(done, task)
        return _answer(done, time.monotonic() - start)

    def _count_requests(self, change: int) -> None:
        self._requests += change
        self._idle.clear() if self._requests else self._idle.set()
        self.metrics.queue_depth(self._arena.in_use)

    def _count(self, done: list[tuple[Outcome, Timings]], task: Task) -> None:
        """Images that succeeded, and the errors of those that did not; a request that fails whole counts once."""
        failed = [outcome for outcome, _ in done if isinstance(outcome, ServiceError)]
        self.metrics.images(task.op, len(done) - len(failed))
        if len(failed) < len(done):
            for error in failed:
                self.metrics.refused(error)

    async def in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        """Run something that would block the event loop in the decode threads."""
        return await asyncio.wrap_future(self._threads.submit(work, *arguments))

    def check(self, task: Task) -> None:
        """Raise what would stop such a request at the door: NotReady, Draining, NoClassifier."""
        if self.state in ("starting", "failed"):
            raise NotReady(self.reason, retry_after_s=1)
        if not self._accepting:
            raise Draining(self.reason)
        if task.op == "classify" and not self.loaded.info["model"]["classes"]:
            raise NoClassifier("this model has no classifier head; it serves embeddings only")

    async def _one(self, item: bytes | ServiceError, slot: int, task: Task) -> tuple[Outcome, Timings]:
        if isinstance(item, ServiceError):
            return item, Timings()
        try:
            times = await self._decode(item, slot)
            result = await self._queue(slot, task)
        except ServiceError as error:
            return error, Timings()
        timings = Timings(times.decode_s, times.preprocess_s, result.queue_s, result.infer_s, 0.0, result.batch_size)
        return result, timings

    async def _decode(self, body: bytes, slot: int) -> images.DecodeTimes:
        """Decode in a thread. The thread holds the slot itself: it cannot be interrupted once it runs."""
        self._arena.hold(slot)
        loop = asyncio.get_running_loop()
        view = self._arena.pixels.slot(slot)
        work = self._threads.submit(self._decode_in_thread, body, view)
        work.add_done_callback(lambda _: loop.call_soon_threadsafe(self._arena.release, slot))
        times = await asyncio.wrap_future(work)
        self.metrics.stage("decode", times.decode_s)
        self.metrics.stage("preprocess", times.preprocess_s)
        return times

    def _decode_in_thread(self, body: bytes, view: np.ndarray) -> images.DecodeTimes:
        with self.metrics.decoding():
            return images.decode(body, view, self._preprocess, self._limits)

    async def _queue(self, slot: int, task: Task) -> Result:
        job = Job(slot, task, time.monotonic(), asyncio.get_running_loop().create_future())
        self._batcher.put(job)
        self._arrived.set()
        try:
            return await job.done
        finally:
            self._batcher.discard(job)


async def _gather(work: list[Coroutine[Any, Any, tuple[Outcome, Timings]]]) -> list[tuple[Outcome, Timings]]:
    """One image needs no task of its own; cancelling a request cancels what it still waits for."""
    if len(work) == 1:
        return [await work[0]]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one) for one in work]
    return [task.result() for task in tasks]


def _answer(done: list[tuple[Outcome, Timings]], total_s: float) -> Answer:
    timings = Timings(total_s=total_s)
    for _, one in done:
        timings = timings.slowest(one)
    return Answer([outcome for outcome, _ in done], timings)
