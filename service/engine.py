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
from service.canary import Canary
from service.device import DeviceLost
from service.errors import (
    DeadlineExceeded,
    Draining,
    NoClassifier,
    NotReady,
    ServiceError,
)
from service.jobs import Job, Result, Task, Timings
from service.messages import Loaded
from service.metrics import Metrics
from service.recovery import Quarantine
from service.settings import Settings
from service.supervisor import RestartsExhausted, Shared, Supervisor

log = logging.getLogger("vim.engine")

T = TypeVar("T")
State = Literal["starting", "ready", "recovering", "draining", "failed"]
WORKER = "service.worker"
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
    """Owns the arena, the queue, the decode threads and the device processes of one application."""

    def __init__(self, settings: Settings, metrics: Metrics, worker: str = WORKER) -> None:
        self.settings = settings
        self.metrics = metrics
        self.on_failure: Callable[[], None] = lambda: None
        self.loaded: Loaded
        self._arena = Arena(settings.queue_images)
        self._batcher = Batcher(settings.max_wait_ms / 1000)
        self._quarantine = Quarantine()
        self._arrived = asyncio.Event()
        self._canary: Canary
        self._supervisors = self._staff(worker)
        self._threads = ThreadPoolExecutor(settings.threads or cpus.available_cpus(), thread_name_prefix="decode")
        self._preprocess: Preprocess
        self._limits = images.DecodeLimits(max_pixels=settings.max_pixels)
        self._main: asyncio.Task[None] | None = None
        self._started_at = 0.0
        self._has_been_ready = False
        self._draining = False
        self._closed = False
        self._failure = ""
        self._requests = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def _staff(self, worker: str) -> list[Supervisor]:
        shared = Shared(
            settings=self.settings,
            arena=self._arena,
            batcher=self._batcher,
            metrics=self.metrics,
            quarantine=self._quarantine,
            arrived=self._arrived,
            worker=worker,
            on_loaded=self._on_loaded,
            on_change=self._on_change,
        )
        return [Supervisor(shared, name) for name in self.settings.devices]

    # --- life cycle -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin loading in the background; `state` tells when requests are served."""
        self._started_at = time.monotonic()
        self._main = asyncio.create_task(self._live(), name="engine")

    @property
    def state(self) -> State:
        """Where the engine is in its life; only `ready` makes `/readyz` answer 200."""
        if self._failure:
            return "failed"
        if self._draining:
            return "draining"
        if self._enough_up():
            return "ready"
        return "recovering" if self._has_been_ready else "starting"

    @property
    def reason(self) -> str:
        """Why it is not ready, for people."""
        if self._failure:
            return self._failure
        lost = [f"{one.name}: {one.last_reason}" for one in self._supervisors if not one.up and one.last_reason]
        loading = "the model is being warmed up" if hasattr(self, "loaded") else "the model is being loaded"
        return {
            "draining": "the service is shutting down",
            "recovering": f"a device process is being replaced ({'; '.join(lost)})",
        }.get(self.state, loading)

    def drain(self) -> None:
        """Say that the end is near: readiness is false from here on; requests are still served until `close`."""
        self._draining = True
        self._on_change()

    def abandon(self) -> None:
        """Answer all that is not finished with 503: the time for finishing is over."""
        for job in [
            *self._batcher.take(len(self._batcher)),
            *(job for one in self._supervisors for job in one.running),
        ]:
            job.fail(Draining("the service shut down before this image had its turn", retry_after_s=1))

    async def close(self) -> None:
        """Finish what was accepted, within the drain time-out, then end the device processes."""
        self.drain()
        self._closed = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), self.settings.drain_timeout_ms / 1000)
        self.abandon()
        if self._main is not None:
            self._main.cancel()
            await asyncio.gather(self._main, return_exceptions=True)
        await asyncio.gather(*(one.close() for one in self._supervisors))
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._arena.close()

    @property
    def info(self) -> dict[str, Any]:
        """What the first device process said of itself, and how all have fared; raises NotReady before it did."""
        if not hasattr(self, "loaded"):
            raise NotReady(self.reason, retry_after_s=1)
        first = self._supervisors[0]
        fates = [
            {"name": one.name, "up": one.up, "restarts": one.restarts, "last_reason": one.last_reason or None}
            for one in self._supervisors
        ]
        started = {"scan": first.scan or self.loaded.info["scan"], "batch_seconds": first.batch_seconds}
        return self.loaded.info | started | {"devices": fates}

    @property
    def max_batch(self) -> int:
        """The largest batch that any device is given now."""
        return max(one.limit for one in self._supervisors)

    async def _live(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for supervisor in self._supervisors:
                    group.create_task(supervisor.run(), name=f"supervise {supervisor.name}")
        except* (DeviceLost, RestartsExhausted) as lost:
            self._fail(str(lost.exceptions[0]))
        except* Exception:
            log.exception("the engine stopped")
            self._fail("the engine stopped; the log has the details")

    def _on_loaded(self, loaded: Loaded) -> Canary:
        """The first device process to load its model settles the size of the slots and what is served."""
        if not hasattr(self, "loaded"):
            self._preprocess = Preprocess.from_dict(loaded.preprocess)
            self._arena.map(loaded.size)
            self._canary = Canary(self._arena, loaded.info["dtype"])
            self.loaded = loaded
        return self._canary

    def _enough_up(self) -> bool:
        enough = all if self.settings.ready_devices == "all" else any
        return enough(one.up for one in self._supervisors)

    def _on_change(self) -> None:
        if self._enough_up() and not self._has_been_ready:
            self._has_been_ready = True
            self._count_loaded(time.monotonic() - self._started_at)
        self.metrics.ready(self.state == "ready")

    def _count_loaded(self, seconds: float) -> None:
        info = self.loaded.info
        version, device = info["model"]["fingerprint"], info["device"]["name"]
        self.metrics.model_loaded(version=version, device=device, dtype=info["dtype"], seconds=seconds)
        log.info("ready in %.1f s: %s", seconds, info["model"]["name"])

    def _fail(self, reason: str) -> None:
        self._failure = reason
        log.error("%s", reason)
        for job in self._batcher.take_all():
            job.fail(NotReady(reason))
        self._on_change()
        self.on_failure()

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
        if self._failure or not self._has_been_ready:
            raise NotReady(self.reason, retry_after_s=1)
        if self._closed:
            raise Draining(self.reason, retry_after_s=1)
        if task.op == "classify" and not self.loaded.info["model"]["classes"]:
            raise NoClassifier("this model has no classifier head; it serves embeddings only")

    async def _one(self, item: bytes | ServiceError, slot: int, task: Task) -> tuple[Outcome, Timings]:
        if isinstance(item, ServiceError):
            return item, Timings()
        try:
            times = await self._decode(item, slot)
            self._quarantine.check(self._arena.pixels.slot(slot), time.monotonic())
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
