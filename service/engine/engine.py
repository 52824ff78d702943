"""The engine: takes each request through admission, decoding, the queue, and the wait for its results.

The engine is independent of HTTP. It uses devices only through `service.engine.backend`.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import dataclasses
import functools
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from model.preprocessing.recipe import Crop, Preprocess
from service.engine.admission import Admission
from service.engine.backend import Backend
from service.engine.coalescing import Coalescing, Flight
from service.engine.decode_pool import DecodePool
from service.engine.models import DEFAULT, ModelParts, Models, Wanted, find
from service.engine.open_requests import OpenRequests
from service.errors import DeadlineExceeded, Draining, NoClassifier, NotReady, ServiceError, bare
from service.images.decode import DecodeLimits, Decoder, DecodeTimes
from service.images.isolated.process import DecoderProcesses
from service.images.jpeg import Jpegs
from service.images.memory_budget import MemoryBudget
from service.jobs import Image, Item, Job, Outcome, RequestClass, Result, Task, Timings
from service.settings import Settings
from service.status import ModelInfo, ModelState
from service.system import cpus
from service.telemetry.metrics import Metrics
from service.telemetry.tracer import ImageTrace, NoTracer, Tracer

T = TypeVar("T")
Done = tuple[Outcome, Timings]  # of one image


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome of each image of a request, in order, and the time of each stage."""

    outcomes: list[Outcome]
    timings: Timings
    model: ModelInfo
    version: str  # of the model
    failed: int  # images with an error instead of a result
    batches: list[int]  # sizes of the forward passes that ran its images


class Engine:
    """Handles the requests of one HTTP process."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        backend: Backend,
        tracer: Tracer | None = None,
    ) -> None:
        threads, patience_s = settings.threads or cpus.available_cpus(), settings.request_timeout_ms / 1000
        own_threads = -(-threads // settings.http_workers)
        self.settings = settings
        self.metrics = metrics
        self.backend = backend
        self.decode_pool = DecodePool(own_threads, patience_s)
        self.admission = Admission(settings, backend, threads)
        self.open_requests = OpenRequests()
        self._slots = backend.slots
        self._usage = usage = backend.slots.usage
        self._tracer = tracer or NoTracer()
        self._coalescing: Coalescing[Done] = Coalescing()
        self._limits = DecodeLimits(settings.max_pixels, settings.max_decode_bytes)
        self._budget = MemoryBudget(settings.max_decode_bytes, patience_s, usage.decode_bytes, usage.decode_since)
        self._jpegs: Jpegs | None = None
        self._isolated = DecoderProcesses(patience_s)
        self._models = Models(backend, metrics, self._make_decoder)
        self._main: asyncio.Task[None] | None = None
        self._closed = False
        self._requests = 0
        self._idle = asyncio.Event()
        self._idle.set()
        metrics.decode_threads(own_threads)
        levels = metrics.levels
        levels.images, levels.body_bytes, levels.decoding = usage.images, usage.body_bytes, self.decode_pool.busy

    # --- life cycle -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the backend in the background; `backend.state` shows when requests can be served."""
        if self.settings.decode != "pillow":
            self._jpegs = Jpegs(self.settings.cache_dir, scale=self.settings.decode == "fast")
        self._main = asyncio.create_task(self.backend.run(), name="backend")

    def abandon(self) -> None:
        """Answer all unfinished requests with 503."""
        self._closed = True
        self.open_requests.end(self._ended())
        self.backend.abandon(self._ended())

    async def close(self) -> None:
        """Finish admitted requests within the drain time-out, then close the backend."""
        self.backend.drain()
        self._closed = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), self.settings.drain_timeout_ms / 1000)
        self.abandon()
        if self._main is not None:
            self._main.cancel()
            await asyncio.gather(self._main, return_exceptions=True)
        await self.backend.close()
        self.decode_pool.close()
        self._isolated.close()

    def _ended(self) -> ServiceError:
        default = self.backend.state.find()
        if default is not None and default.failure:
            return NotReady(default.reason)
        return Draining("the service shut down before this request was finished", retry_after_s=1)

    # --- state ------------------------------------------------------------------------------------------------

    def find(self, wanted: Wanted = DEFAULT) -> ModelState:
        """The state of a model. Raises UnknownModel if it is not loaded, in this version."""
        return find(self.backend.state, wanted)

    @property
    def failure(self) -> str:
        """Why the default model can no longer be served, for the log; empty if it can."""
        state = self.backend.state.find()
        return state.failure if state else ""

    @property
    def overdue(self) -> bool:
        """Return whether in any HTTP process all decode threads are busy for longer than a request may last."""
        return self.decode_pool.overdue or any(self._usage.overdue.parts)

    def report(self) -> None:
        """Show the parent and the other HTTP processes the state of this one. Call it at regular intervals."""
        self._usage.overdue.own[0] = self.decode_pool.overdue
        self._usage.beats.own[0] += 1
        self.metrics.sample()

    def _make_decoder(self, recipe: Preprocess) -> Decoder:
        return Decoder(recipe, self._limits, self._budget, self._jpegs, self._isolated)

    # --- requests ---------------------------------------------------------------------------------------------

    def check_any(self, task: Task) -> None:
        """Raise the error of the default model if no model can serve this task now. The body may name another."""
        if not any(self._can_serve(task, one) for one in self.backend.state.models):
            self.check(task)

    def _can_serve(self, task: Task, state: ModelState) -> bool:
        try:
            self.check(task, state)
        except ServiceError:
            return False
        return True

    def check(self, task: Task, state: ModelState | None = None) -> None:
        """Raise the error of a request that cannot be served now: NotReady, Draining, NoClassifier, UnknownModel."""
        state = state or self.find()
        if state.failure or not state.has_been_ready:
            raise NotReady(state.reason, retry_after_s=1)
        if self._closed:
            raise Draining(state.reason, retry_after_s=1)
        if task.own_scores and state.model and not state.model.classes:
            raise NoClassifier("this model has no classifier head; it serves embeddings only")

    async def infer(
        self,
        items: Sequence[Item],
        task: Task,
        deadline: float,
        request_class: RequestClass = "interactive",
        state: ModelState | None = None,
    ) -> Answer:
        """Decode and run every image. Raises ServiceError for the whole request; the error of one image is its outcome.

        `deadline` is on the monotonic clock. When it passes, or the caller is cancelled, the request's images that
        still wait are dropped. `state` is a model that `find` has just returned, or that the caller holds; None means
        the default model. If the model is reloaded, this request ends on the version that it began with.
        """
        state = state or self.find()
        self.check(task, state)
        start = time.monotonic()
        model = self._models.of(state)
        slots = self.admission.admit(request_class, len(items), deadline - start, state)
        done: list[Done] = []
        self._begin(state)
        try:
            async with asyncio.timeout(deadline - start):
                pairs = zip(items, slots, strict=True)
                done = await _gather([self._image(item, slot, task, request_class, model) for item, slot in pairs])
        except TimeoutError:
            setting = f"X-Request-Timeout-Ms, or {self.settings.request_timeout_ms} ms (VIM_REQUEST_TIMEOUT_MS)"
            raise DeadlineExceeded(f"no answer within the time allowed: {setting}") from None
        finally:
            self.admission.leave(slots, state.id.number, answered=bool(done))
            self._end(state)
        results = [outcome for outcome, _ in done if isinstance(outcome, Result)]
        assert state.model is not None  # it has been ready
        answer = Answer(
            outcomes=[outcome for outcome, _ in done],
            timings=_timings(done, time.monotonic() - start),
            model=state.model,
            version=state.id.version,
            failed=len(done) - len(results),
            # The images of one pass share its duration, which is measured once.
            batches=list({result.infer_s: result.batch_size for result in results}.values()),
        )
        model.metrics.images(task.op, request_class, len(results))
        return answer

    def _begin(self, state: ModelState) -> None:
        self.backend.hold(state.id.key)
        self._requests += 1
        self._idle.clear()

    def _end(self, state: ModelState) -> None:
        self.backend.release(state.id.key)
        self._requests -= 1
        if not self._requests:
            self._idle.set()

    async def _image(self, item: Item, slot: int, task: Task, request_class: RequestClass, model: ModelParts) -> Done:
        """One image of a request: start its work, or join that of an identical image."""
        start = time.monotonic()
        if isinstance(item, ServiceError):
            if self._tracer.enabled:
                self._tracer.image(ImageTrace(start, error=item.code))
            return item, Timings()
        flight = await self._coalescing.enter(item, (model.key, task), request_class)
        joined = flight.task is not None
        if flight.task is None:
            self._slots.hold(slot)  # the request may end before the work ends
            flight.task = asyncio.create_task(self._work(item, slot, task, flight, model))
            flight.task.add_done_callback(lambda _: self._slots.release(slot))
        elif flight.job is not None and flight.job.request_class != flight.request_class:
            self.backend.promote(flight.job)
        try:
            done = await asyncio.shield(flight.task)
        finally:
            self._coalescing.leave(flight)
        return self._joined(*done, start) if joined else done

    async def _work(self, image: Image, slot: int, task: Task, flight: Flight[Done], model: ModelParts) -> Done:
        """Decode one image, queue its job and await the result, for every request that waits for it."""
        trace = ImageTrace(time.monotonic())
        try:
            times = await self._decode(image, slot, task.crop, flight.request_class, trace, model)
            job = self._queue(slot, task, flight, trace, model)
            try:
                result = await job.done
            except asyncio.CancelledError:
                self.backend.cancel(job)
                raise
            finally:
                trace.device_began = job.began_at
            trace.batch_size = result.batch_size
            if task.in_domain:
                result = dataclasses.replace(result, values=result.values[:-1], in_domain=float(result.values[-1]))
            stages = times.decode_s, times.preprocess_s, result.queue_s, result.infer_s
            return result, Timings(*stages, batch_size=result.batch_size)
        except ServiceError as error:
            trace.error = error.code
            return bare(error), Timings()
        except asyncio.CancelledError:
            trace.error = "cancelled"
            raise
        finally:
            if self._tracer.enabled:
                self._tracer.image(trace)

    async def _decode(
        self, image: Image, slot: int, crop: Crop, request_class: RequestClass, trace: ImageTrace, model: ModelParts
    ) -> DecodeTimes:
        """Decode into the slot: a small image on the event loop, others in a thread."""
        decoder, out, pool = model.decoders[crop], model.pixels[slot], self.decode_pool
        trace.decode_began = time.monotonic()
        try:
            quick = decoder.quick(image) if request_class == "interactive" else None
            if quick is not None:
                times = await pool.inline.run(quick, out)
            else:
                self._slots.hold(slot)  # until the thread has ended
                release = functools.partial(self._slots.release, slot)
                times = await pool.run(request_class, decoder.decode, image, out, ended=release)
        finally:
            trace.decode_ended = time.monotonic()
        trace.decode_s, trace.preprocess_s = times.decode_s, times.preprocess_s
        self.metrics.decoded(times.decode_s, times.preprocess_s, times.profile)
        self.admission.decoded(times.decode_s + times.preprocess_s, model.number)
        return times

    def _queue(self, slot: int, task: Task, flight: Flight[Done], trace: ImageTrace, model: ModelParts) -> Job:
        if self.open_requests.verdict is not None:  # the service has ended during decoding
            raise self._ended()
        done: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        trace.queued = time.monotonic()
        flight.job = job = Job(slot, task, trace.queued, done, flight.request_class, model.key)
        self.backend.submit(job, more=bool(self.decode_pool.inline.waiting))
        return job

    def _joined(self, outcome: Outcome, _: Timings, start: float) -> Done:
        """A copy of the outcome of another request; the times are only those that this request waited."""
        self.metrics.joined()
        now = time.monotonic()
        if self._tracer.enabled:
            code = outcome.code if isinstance(outcome, ServiceError) else None
            self._tracer.image(ImageTrace(start, joined=True, error=code))
        if isinstance(outcome, ServiceError):
            return copy.copy(outcome), Timings()
        infer_s = min(outcome.infer_s, now - start)
        return outcome, Timings(queue_s=now - start - infer_s, infer_s=infer_s, batch_size=outcome.batch_size)


async def _gather(work: list[Coroutine[Any, Any, Done]]) -> list[Done]:
    """Await all images; a single image needs no task. If the request is cancelled, the unfinished ones are too."""
    if len(work) == 1:
        return [await work[0]]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one) for one in work]
    return [task.result() for task in tasks]


def _timings(done: list[Done], total_s: float) -> Timings:
    slowest = functools.reduce(Timings.slowest, [times for _, times in done[1:]], done[0][1])
    stages = slowest.decode_s, slowest.preprocess_s, slowest.queue_s, slowest.infer_s
    return Timings(*stages, total_s, slowest.batch_size)
