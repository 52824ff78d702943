"""What an HTTP process has instead of a fleet of its own where several share one parent: a socket to `dispatch`.

`Outpost` stands for the fleet, `Queue` for the batcher. Both are told by the parent how things are and never ask, so
that every HTTP process gives the same answer about the whole service, and at once.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, cast

import numpy as np

from service.devices.batcher import GATHERED, GATHERING_S
from service.devices.messages import Begin, FromHttp, Holding, Landed, Listening, Loaded, Order, Orders, ToHttp, Told
from service.devices.pool import State, explained
from service.devices.slots import Arena, Lease
from service.errors import NotReady
from service.ipc import Link
from service.jobs import Job, Result
from service.telemetry.multiprocess import Shared
from service.telemetry.shared_counters import Tally

TICK_S = 0.25  # how often the parent hears how this process fares

Send = Callable[[FromHttp], None]


class Queue:
    """The parent's queue as the engine sees it, and who waits for what is in it."""

    def __init__(self, arena: Arena, first: int, processes: int, send: Send) -> None:
        self.more: Callable[[], bool] = lambda: False  # are jobs about to come?
        self.seconds_per_image = 0.0  # what an image of this process costs the devices, that work for others as well
        self._arena = arena
        self._first = first
        self._processes = processes
        self._send = send
        self._jobs: dict[int, Job] = {}  # by slot of the whole arena
        self._lent: set[int] = set()  # slots that the parent has not given back
        self._new: list[Order] = []
        self._hurried: list[int] = []
        self._dropped: list[int] = []
        self._flushing: asyncio.Handle | None = None
        self._hurrying = False

    def put(self, job: Job) -> None:
        """Queue a job; its slot is held until the parent gives it back."""
        self._arena.hold(job.slot)
        slot = self._first + job.slot
        self._jobs[slot] = job
        self._lent.add(slot)
        self._new.append(Order(slot, job.task, job.enqueued_at, job.request_class))
        self._speak(at_once=len(self._new) >= GATHERED or not self.more())

    def worth_telling(self, _: int) -> bool:
        """Nobody here waits for a batch."""
        return False

    def hurry(self, job: Job) -> None:
        """An interactive request waits for this bulk job now."""
        job.request_class = "interactive"
        if self._waits(job):
            self._hurried.append(self._first + job.slot)
            self._speak()

    def discard(self, job: Job) -> bool:
        """Drop a job that nobody waits for any more; False if it has its outcome already."""
        if waits := self._waits(job):
            del self._jobs[self._first + job.slot]
            self._dropped.append(self._first + job.slot)
            self._speak()
        return waits

    def take_all(self) -> list[Job]:
        """Every job that has no outcome."""
        return list(self._jobs.values())

    def landed(self, message: Landed) -> None:
        """Outcomes, and slots that are free again."""
        for row in message.rows:
            if job := self._jobs.pop(row.slot, None):
                job.began_at = job.enqueued_at + row.queue_s
                job.answer(Result(np.frombuffer(row.values, np.float32), row.queue_s, row.infer_s, row.batch_size))
        for slot, error in message.errors:
            if job := self._jobs.pop(slot, None):
                job.fail(error)
        for slot in message.free:
            if slot in self._lent:  # else of an earlier process of this number
                self._lent.discard(slot)
                self._arena.release(slot - self._first)

    def costs(self, seconds_per_image: float) -> None:
        """What an image costs a device now."""
        self.seconds_per_image = seconds_per_image * self._processes

    def _waits(self, job: Job) -> bool:
        return self._jobs.get(self._first + job.slot) is job

    def _speak(self, *, at_once: bool = True) -> None:
        """All that comes up in one turn of the event loop goes in one message; new jobs gather as in `Batcher`."""
        loop = asyncio.get_running_loop()
        if at_once and not self._hurrying:
            if self._flushing:
                self._flushing.cancel()
            self._flushing, self._hurrying = loop.call_soon(self._flush), True
        elif self._flushing is None:
            self._flushing = loop.call_later(GATHERING_S, self._flush)

    def _flush(self) -> None:
        self._flushing, self._hurrying = None, False
        self._send(Orders(tuple(self._new), tuple(self._hurried), tuple(self._dropped)))
        for words in (self._new, self._hurried, self._dropped):
            words.clear()


class Outpost:
    """The fleet as the parent tells of it."""

    def __init__(
        self, begin: Begin, lease: Lease, slots: int, processes: int, tally: Tally, connection: socket.socket
    ) -> None:
        self.on_failure: Callable[[], None] = lambda: None
        self.on_tick: Callable[[], Holding] = lambda: Holding(0, overdue=False)
        self.begin = begin
        self.shared = Shared(begin.metrics, begin.name)
        self.tally = tally
        self.loaded: Loaded | None = None
        self.arrived = asyncio.Event()
        self.running: list[Job] = []  # what a device has in hand is in the queue as well
        self.arena = Arena(slots, lease)
        self.queue = Queue(self.arena, lease.first, processes, self._send)
        self._told = Told("starting", "", False, None, 1, 0.0, 0, False)
        self._holding = Holding(0, overdue=False)
        self._draining = False
        self._connection = connection
        self._link: Link | None = None
        self._early: list[FromHttp] = []  # said before there was anything to write with

    async def run(self) -> None:
        """Hear what the parent says, until cancelled or until it is gone."""
        self._link = await Link.over(self._connection, self._take)
        ticks = asyncio.create_task(self._tick(), name="tick")
        for message in self._early:
            self._send(message)
        try:
            await self._link.ended
            self._on_told(Told("failed", "the parent process is gone", False, None, 1, 0.0, 0, False))
        finally:
            ticks.cancel()

    async def close(self) -> None:
        """Say no more."""
        if self._link is not None:
            self._link.close()

    def drain(self) -> None:
        """Readiness is false from here on."""
        self._draining = True

    def listening(self) -> None:
        """Connections are taken from now on."""
        self._send(Listening())

    @property
    def state(self) -> State:
        """Where the service is in its life."""
        if self._draining and not self.failure:
            return "draining"
        return cast(State, self._told.state)

    @property
    def failure(self) -> str:
        """Why the model cannot be served, for the log."""
        return self._told.failure

    @property
    def has_been_ready(self) -> bool:
        """Has the service been ready before?"""
        return self._told.has_been_ready

    @property
    def reason(self) -> str:
        """Why it is not ready, for clients."""
        return explained(self.state, loaded=self.loaded is not None)

    @property
    def info(self) -> dict[str, Any]:
        """As `Fleet.info`; raises NotReady before there is any."""
        if self._told.info is None:
            raise NotReady(self.reason, retry_after_s=1)
        return self._told.info

    @property
    def max_batch(self) -> int:
        """The largest batch that any device is given now."""
        return self._told.max_batch

    @property
    def elsewhere(self) -> Holding:
        """How the other HTTP processes fare."""
        return Holding(max(0, self._told.images - self._holding.images), self._told.overdue)

    def _take(self, message: ToHttp) -> None:
        if isinstance(message, Landed):
            self.queue.landed(message)
        elif isinstance(message, Loaded):
            self.arena.map(message.size)
            self.loaded = message
        elif isinstance(message, Told):
            self._on_told(message)

    def _on_told(self, told: Told) -> None:
        failed = bool(told.failure) and not self.failure
        self._told = told
        self.queue.costs(told.seconds_per_image)
        if failed:
            for job in self.queue.take_all():
                job.fail(NotReady(self.reason))
            self.on_failure()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            if (now := self.on_tick()) != self._holding:
                self._holding = now
                self._send(now)

    def _send(self, message: FromHttp) -> None:
        if self._link is None:
            self._early.append(message)
        else:
            self._link.say(message)
