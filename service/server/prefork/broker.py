"""The parent's side of several HTTP processes: their images in one queue for all devices, and the answers back.

An image is known by its slot: an HTTP process hands one over, and has it back when no device reads it any more, whether
or not it still wants the answer. Starting and watching these processes is `parent`; the other side is `outpost`.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable
from typing import TypeVar

from service.devices.batcher import Batcher
from service.devices.messages import FromHttp, Holding, Landed, Order, Orders, Row, ToHttp, Told
from service.devices.pool import Fleet
from service.devices.retry import Quarantine
from service.devices.slots import Arena
from service.errors import InferenceFailed, NotReady, ServiceError
from service.jobs import Job, Result
from service.settings import Settings
from service.telemetry.metrics import Metrics

LENT = 1  # what a slot's count is when only its HTTP process has it

T = TypeVar("T")
Send = Callable[[ToHttp], None]


class Lent(Arena):
    """All slots, each lent to an HTTP process for good; tells when nobody else holds one any more."""

    def __init__(self, slots: int) -> None:
        super().__init__(slots)
        self.on_free: Callable[[int], None] = lambda slot: None
        self.acquire(slots)

    def release(self, slot: int) -> None:
        """One holder fewer."""
        super().release(slot)
        if self._holders[slot] == LENT:
            self.on_free(slot)


class Dispatch:
    """The fleet, its queue, and a desk for each HTTP process that is there."""

    def __init__(self, settings: Settings, metrics: Metrics, worker: str) -> None:
        self.share = settings.share.queue_images
        self.arena = Lent(self.share * settings.http_workers)
        self.batcher = Batcher(settings.max_wait_ms / 1000)
        self.quarantine = Quarantine()
        self.fleet = Fleet(settings, metrics, self.arena, self.batcher, self.quarantine, worker)
        self.fleet.on_change = self.tell
        self.arena.on_free = self._on_free
        self._desks: dict[int, Desk] = {}

    def open(self, number: int, send: Send) -> Desk:
        """A desk for the HTTP process of this number; it is told at once what is known."""
        self._desks[number] = desk = Desk(self, send)
        desk.tell(self._state())
        return desk

    def close(self, number: int) -> None:
        """That process has ended: nobody waits for its images."""
        if desk := self._desks.pop(number, None):
            desk.close()
        self.tell()

    def tell(self) -> None:
        """Tell every HTTP process what has changed."""
        state = self._state()
        for desk in self._desks.values():
            desk.tell(state)

    def _state(self) -> Told:
        fleet, held = self.fleet, [desk.holding for desk in self._desks.values()]
        return Told(
            state=fleet.state,
            failure=fleet.failure,
            has_been_ready=fleet.has_been_ready,
            info=fleet.info if fleet.loaded else None,
            max_batch=fleet.max_batch,
            seconds_per_image=self.batcher.seconds_per_image,
            images=sum(one.images for one in held),
            overdue=any(one.overdue for one in held),
        )

    def _on_free(self, slot: int) -> None:
        if desk := self._desks.get(slot // self.share):
            desk.freed(slot)


class Desk:
    """The images of one HTTP process that are in the queue or on a device."""

    def __init__(self, dispatch: Dispatch, send: Send) -> None:
        self.holding = Holding(0, overdue=False)
        self._dispatch = dispatch
        self._send = send
        self._jobs: dict[int, Job] = {}
        self._rows: list[Row] = []
        self._errors: list[tuple[int, ServiceError]] = []
        self._free: list[int] = []
        self._told: Told | None = None
        self._knows_model = self._closed = False

    def take(self, message: FromHttp) -> None:
        """What the process says."""
        if isinstance(message, Holding):
            self.holding = message
        elif isinstance(message, Orders):
            for order in message.new:
                self._queue(order)
            for slot in message.hurried:
                if slot in self._jobs:
                    self._dispatch.batcher.hurry(self._jobs[slot])
            for slot in message.dropped:
                self._drop(slot)

    def tell(self, state: Told) -> None:
        """The state, if it is news; what is served before the first state that speaks of it."""
        loaded = self._dispatch.fleet.loaded
        if loaded is not None and not self._knows_model:
            self._knows_model = True
            self._send(loaded)
        if state != self._told:
            self._told = state
            self._send(state)

    def freed(self, slot: int) -> None:
        """No device reads it any more."""
        self._say(self._free, slot)

    def close(self) -> None:
        """Nobody waits any more. What a device has in hand runs to its end."""
        self._closed = True
        for slot in tuple(self._jobs):
            self._drop(slot)

    def _queue(self, order: Order) -> None:
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        job = Job(order.slot, order.task, order.enqueued_at, future, order.request_class)
        self._jobs[order.slot] = job
        self._dispatch.arena.hold(order.slot)
        future.add_done_callback(functools.partial(self._done, job))
        fleet = self._dispatch.fleet
        try:
            if fleet.failure:
                raise NotReady(fleet.reason)
            self._dispatch.quarantine.check(self._dispatch.arena.pixels.slot(order.slot), time.monotonic())
        except (InferenceFailed, NotReady) as error:
            job.fail(error)
        else:
            self._dispatch.batcher.put(job)
            fleet.arrived.set()

    def _drop(self, slot: int) -> None:
        if job := self._jobs.get(slot):
            self._dispatch.batcher.discard(job)
            job.done.cancel()

    def _done(self, job: Job, future: asyncio.Future[Result]) -> None:
        if self._jobs.get(job.slot) is job:
            del self._jobs[job.slot]
        if not future.cancelled():
            error = future.exception()
            if error is None:
                self._say(self._rows, _row(job.slot, future.result()))
            else:
                assert isinstance(error, ServiceError)
                self._say(self._errors, (job.slot, error))
        self._dispatch.arena.release(job.slot)

    def _say(self, words: list[T], word: T) -> None:
        """All that comes up in one turn of the event loop goes in one message."""
        if not self._closed:
            if not (self._rows or self._errors or self._free):
                asyncio.get_running_loop().call_soon(self._flush)
            words.append(word)

    def _flush(self) -> None:
        self._send(Landed(tuple(self._rows), tuple(self._errors), tuple(self._free)))
        self._rows.clear()
        self._errors.clear()
        self._free.clear()


def _row(slot: int, result: Result) -> Row:
    return Row(slot, result.values.tobytes(), result.queue_s, result.infer_s, result.batch_size)
