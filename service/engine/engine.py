"""One request through the service: slots, decoding, queue, device, results. The only file that knows the whole way.

take → decode → queue → run → settle
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from model.preprocessing.recipe import Preprocess
from service.api.request.image_fields import Image, Item
from service.devices.batcher import Batcher
from service.devices.messages import Holding, Loaded
from service.devices.pool import WORKER, Fleet
from service.devices.retry import Quarantine
from service.devices.slots import Arena
from service.engine import coalescing
from service.engine.admission import Admission
from service.engine.coalescing import Flight, Flights
from service.engine.decode_pool import Threads
from service.engine.inline_budget import Turns
from service.engine.open_requests import Unanswered
from service.errors import (
    DeadlineExceeded,
    Draining,
    NoClassifier,
    NotReady,
    ServiceError,
    bare,
)
from service.images.decode import DecodeLimits, Decoder, DecodeTimes
from service.images.jpeg import Jpegs
from service.images.memory_budget import MemoryBudget
from service.jobs import Job, RequestClass, Result, Task, Timings
from service.server.prefork.remote_pool import Outpost, Queue
from service.settings import Settings
from service.system import cpus
from service.telemetry.metrics import Metrics

log = logging.getLogger("vim.engine")

T = TypeVar("T")
Outcome = Result | ServiceError
Landed = tuple[Outcome, Timings]  # of one image


@dataclass(frozen=True, slots=True)
class Answer:
    """One outcome for each image of a request, in order, and where the time went."""

    outcomes: list[Outcome]
    timings: Timings

    @property
    def failed(self) -> int:
        """How many images have an error instead of a result."""
        return sum(isinstance(outcome, ServiceError) for outcome in self.outcomes)

    @property
    def batches(self) -> list[int]:
        """Sizes of the forward passes that ran its images; the images of one share its duration, measured once."""
        results = (outcome for outcome in self.outcomes if isinstance(outcome, Result))
        return list({result.infer_s: result.batch_size for result in results}.values())


class Engine:
    """Owns the arena, the queue, the decode threads and the fleet of device processes of one application."""

    def __init__(
        self, settings: Settings, metrics: Metrics, worker: str = WORKER, outpost: Outpost | None = None
    ) -> None:
        """With an `outpost` the devices, and the queue in front of them, are the parent's."""
        self.settings = settings
        self.metrics = metrics
        self._outpost = outpost
        own = settings.share if outpost else settings
        self._arena = outpost.arena if outpost else Arena(settings.queue_images)
        self._turns = Turns()
        self._batcher: Batcher | Queue = outpost.queue if outpost else Batcher(settings.max_wait_ms / 1000, self._more)
        self._quarantine = Quarantine()
        self._flights: Flights[Landed] = Flights(self._batcher.hurry)
        self.fleet: Fleet | Outpost = outpost or self._fleet(worker)
        threads, patience_s = own.threads or cpus.available_cpus(), settings.request_timeout_ms / 1000
        self.threads = Threads(threads, patience_s)
        self.admission = Admission(own, self._arena, threads, self._device_s)
        metrics.decode_threads(threads)
        metrics.queue_depth(self._arena.in_use_by)
        metrics.body_bytes(self.admission.bytes_in_use)
        self._memory_budget = MemoryBudget(own.max_decode_bytes, patience_s)
        self._jpegs: Jpegs | None = None
        self._limits = DecodeLimits(settings.max_pixels, own.max_decode_bytes)
        self._main: asyncio.Task[None] | None = None
        self._closed = False
        self.unanswered = Unanswered()
        self._requests = 0
        self._idle = asyncio.Event()
        self._idle.set()
        if outpost:
            outpost.on_tick = self._tick
            outpost.queue.more = self._more

    def _fleet(self, worker: str) -> Fleet:
        assert isinstance(self._batcher, Batcher)
        return Fleet(self.settings, self.metrics, self._arena, self._batcher, self._quarantine, worker)

    # --- life cycle -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin loading in the background; `fleet.state` tells when requests are served."""
        if self.settings.decode != "pillow":
            self._jpegs = Jpegs(self.settings.cache_dir, scale=self.settings.decode == "fast")
        self._main = asyncio.create_task(self.fleet.run(), name="fleet")

    def abandon(self) -> None:
        """Answer all that is not finished with 503: the time for finishing is over, or there is nothing to do it."""
        self._closed = True
        self.unanswered.end(self._ended())
        for job in [*self._batcher.take_all(), *self.fleet.running]:
            job.fail(self._ended())

    def _ended(self) -> ServiceError:
        if self.fleet.failure:
            return NotReady(self.fleet.reason)
        return Draining("the service shut down before this request had its turn", retry_after_s=1)

    async def close(self) -> None:
        """Finish what was accepted, within the drain time-out, then end the device processes."""
        self.fleet.drain()
        self._closed = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), self.settings.drain_timeout_ms / 1000)
        self.abandon()
        if self._main is not None:
            self._main.cancel()
            await asyncio.gather(self._main, return_exceptions=True)
        await self.fleet.close()
        self.threads.close()
        self._arena.close()

    @property
    def loaded(self) -> Loaded:
        """What is served; raises NotReady before it is known."""
        if self.fleet.loaded is None:
            raise NotReady(self.fleet.reason, retry_after_s=1)
        return self.fleet.loaded

    @property
    def waiting(self) -> int:
        """Images admitted and not yet answered, by all HTTP processes."""
        return self._arena.in_use + (self._outpost.elsewhere.images if self._outpost else 0)

    @property
    def overdue(self) -> bool:
        """Has an HTTP process no decoding thread that is not busy for too long?"""
        return self.threads.overdue or (self._outpost is not None and self._outpost.elsewhere.overdue)

    def _more(self) -> bool:
        return self._turns.busy

    def _tick(self) -> Holding:
        """For the other HTTP processes: how this one fares."""
        self.metrics.sample()
        return Holding(self._arena.in_use, self.threads.overdue)

    def _device_s(self) -> float:
        return self._batcher.seconds_per_image / len(self.settings.devices)

    @functools.cached_property
    def _decoder(self) -> Decoder:
        recipe = Preprocess.from_dict(self.loaded.preprocess)
        return Decoder(recipe, self._limits, self._memory_budget, self._jpegs)

    # --- requests ---------------------------------------------------------------------------------------------

    async def infer(
        self, items: Sequence[Item], task: Task, deadline: float, request_class: RequestClass = "interactive"
    ) -> Answer:
        """Decode and run every image. Raises ServiceError for the request; an image's own error is its outcome.

        `deadline` is on the monotonic clock. When it passes, or the caller is cancelled, what still waits is dropped.
        """
        self.check(task)
        start = time.monotonic()
        slots = self.admission.take_slots(request_class, len(items), deadline - start)
        self._count_requests(+1)
        try:
            async with asyncio.timeout(deadline - start):
                pairs = zip(items, slots, strict=True)
                done = await _gather([self._one(item, slot, task, request_class) for item, slot in pairs])
            self.admission.answered(len(items))
        except TimeoutError:
            setting = f"X-Request-Timeout-Ms, or {self.settings.request_timeout_ms} ms (VIM_REQUEST_TIMEOUT_MS)"
            raise DeadlineExceeded(f"no answer within the time allowed: {setting}") from None
        finally:
            for slot in slots:
                self._arena.release(slot)
            self._count_requests(-1)
        self._count(done, task, request_class)
        return _answer(done, time.monotonic() - start)

    def _count_requests(self, change: int) -> None:
        self._requests += change
        self._idle.clear() if self._requests else self._idle.set()

    def _count(self, done: list[Landed], task: Task, request_class: RequestClass) -> None:
        """Images that succeeded, and the errors of those that did not; a request that fails whole counts once."""
        failed = [outcome for outcome, _ in done if isinstance(outcome, ServiceError)]
        self.metrics.images(task.op, request_class, len(done) - len(failed))
        if len(failed) < len(done):
            for error in failed:
                self.metrics.refused(error)

    def full(self) -> ServiceError | None:
        """Why nobody can come in now, if it is for lack of room and nothing worse."""
        return None if self._closed or not self.fleet.has_been_ready else self.admission.full()

    async def in_thread(
        self, work: Callable[..., T], *arguments: Any, request_class: RequestClass = "interactive"
    ) -> T:
        """Run something that would block the event loop in the decode threads."""
        return await self.threads.run(request_class, work, *arguments)

    def check(self, task: Task) -> None:
        """Raise what would stop such a request at the door: NotReady, Draining, NoClassifier."""
        if self.fleet.failure or not self.fleet.has_been_ready:
            raise NotReady(self.fleet.reason, retry_after_s=1)
        if self._closed:
            raise Draining(self.fleet.reason, retry_after_s=1)
        if task.op == "classify" and not self.loaded.info["model"]["classes"]:
            raise NoClassifier("this model has no classifier head; it serves embeddings only")

    async def _one(self, item: Item, slot: int, task: Task, request_class: RequestClass) -> Landed:
        if isinstance(item, ServiceError):
            return item, Timings()
        start = time.monotonic()
        key = (await coalescing.key_of(item), task.parts)

        def fly(flight: Flight[Landed]) -> Coroutine[Any, Any, Landed]:
            self._arena.hold(slot)  # its first sender may leave
            return self._fly(item, slot, task, flight)

        release = functools.partial(self._arena.release, slot)
        (outcome, timings), joined = await self._flights.share(key, request_class, fly, release)
        return self._join(outcome, time.monotonic() - start) if joined else (outcome, timings)

    def _join(self, outcome: Outcome, waited_s: float) -> Landed:
        """For one who joined: an error of its own, and of the flight's time what it waited itself."""
        self.metrics.joined()
        if isinstance(outcome, ServiceError):
            return copy.copy(outcome), Timings()
        infer_s = min(outcome.infer_s, waited_s)
        return outcome, Timings(queue_s=waited_s - infer_s, infer_s=infer_s, batch_size=outcome.batch_size)

    async def _fly(self, image: Image, slot: int, task: Task, flight: Flight[Landed]) -> Landed:
        """Decode, queue, run, for everyone who sent this image."""
        try:
            times = await self._decode(image, slot, flight.request_class)
            self._quarantine.check(self._arena.pixels.slot(slot), time.monotonic())
            result = await self._queue(slot, task, flight)
        except ServiceError as error:
            return bare(error), Timings()
        timings = Timings(times.decode_s, times.preprocess_s, result.queue_s, result.infer_s, 0.0, result.batch_size)
        return result, timings

    async def _decode(self, image: Image, slot: int, request_class: RequestClass) -> DecodeTimes:
        """A small image at once; others in a thread, which holds the slot itself until it has ended."""
        view = self._arena.pixels.slot(slot)
        quick = self._decoder.quick(image, self._arena.in_use == 1) if request_class == "interactive" else None
        if quick is not None:
            times = await self._turns.run(quick, view)
        else:
            self._arena.hold(slot)
            release = functools.partial(self._arena.release, slot)
            times = await self.threads.run(request_class, self._decode_in_thread, image, view, ended=release)
        self.metrics.stage("decode", times.decode_s)
        self.metrics.stage("preprocess", times.preprocess_s)
        self.admission.decoded(times.decode_s + times.preprocess_s)
        return times

    def _decode_in_thread(self, image: Image, view: np.ndarray) -> DecodeTimes:
        with self.metrics.decoding():
            return self._decoder.decode(image, view)

    async def _queue(self, slot: int, task: Task, flight: Flight[Landed]) -> Result:
        if self.unanswered.verdict is not None:  # the time was over while it was being decoded
            raise self._ended()
        done: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        flight.job = job = Job(slot, task, time.monotonic(), done, flight.request_class)
        self._batcher.put(job)
        if self._batcher.worth_telling(self.fleet.max_batch):
            self.fleet.arrived.set()
        try:
            return await job.done
        finally:
            self._batcher.discard(job)


async def _gather(work: list[Coroutine[Any, Any, Landed]]) -> list[Landed]:
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
