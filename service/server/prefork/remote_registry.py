"""In an HTTP process: submits jobs to the parent's models over a socket (a `service.engine.backend.Backend`).

The parent sends the state of the models whenever it changes. So every HTTP process can answer at once for the whole
service, and all answers are the same. The other end of the socket is `service.server.prefork.broker`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import socket
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from service.devices.batcher import GATHERED, GATHERING_S
from service.devices.slots import Slots
from service.errors import NotReady, all_errors
from service.ipc import Connection
from service.jobs import Area, Job, Result
from service.server.prefork.messages import (
    Control,
    Controlled,
    FromChild,
    Listening,
    Outcomes,
    ServiceState,
    Submission,
    Submissions,
    ToChild,
    Using,
)
from service.status import BackendState, IndexEntry

ERRORS = {error.code: error for error in all_errors()}


class RemoteRegistry:
    """The parent's models."""

    def __init__(self, slots: Slots, socket_end: socket.socket) -> None:
        """`slots`: those of this process, in the memory of the parent."""
        self.slots = slots
        self.state = BackendState()
        self.failed = asyncio.Event()
        self.seconds_per_image: Mapping[int, float] = {}
        self._socket = socket_end
        self._connection: Connection | None = None
        self._early: list[FromChild] = []  # messages from before the connection was open
        self._draining = False
        self._jobs: dict[int, Job] = {}  # by slot, counted over all HTTP processes
        self._unfreed: set[int] = set()  # slots that the parent has not freed
        self._held: Counter[int] = Counter()  # models
        self._reported: Using | None = None
        self._areas: dict[int, Area] = {}  # of the models in use
        self._controls: dict[int, asyncio.Future[Controlled]] = {}
        self._ids = itertools.count()
        self._new: list[Submission] = []
        self._promoted: list[int] = []
        self._cancelled: list[int] = []
        self._flushing: asyncio.Handle | None = None
        self._urgent = False  # `_flushing` runs in the next iteration of the event loop

    # --- jobs -------------------------------------------------------------------------------------------------

    def submit(self, job: Job, *, more: bool = False) -> None:
        """Queue a job; its slot is held until the parent frees it."""
        self.slots.hold(job.slot)
        slot = self.slots.first + job.slot
        self._jobs[slot] = job
        self._unfreed.add(slot)
        self._new.append(Submission(slot, job.task, job.enqueued_at, job.request_class, job.model))
        self._flush_soon(urgent=len(self._new) >= GATHERED or not more)

    def cancel(self, job: Job) -> None:
        """Remove a job that no request waits for."""
        if self._waits(job):
            del self._jobs[self.slots.first + job.slot]
            self._cancelled.append(self.slots.first + job.slot)
            self._flush_soon()

    def promote(self, job: Job) -> None:
        """Make a bulk job interactive."""
        job.request_class = "interactive"
        if self._waits(job):
            self._promoted.append(self.slots.first + job.slot)
            self._flush_soon()

    def abandon(self, error: Exception) -> None:
        """Fail every job that is not settled."""
        for job in tuple(self._jobs.values()):
            self.cancel(job)
            job.fail(error)

    def hold(self, model: int) -> None:
        """Keep a loaded model (key), even if it is replaced or unloaded, until `release` was called as often."""
        self._held[model] += 1

    def release(self, model: int) -> None:
        """End one `hold`."""
        self._held[model] -= 1
        if not self._held[model]:
            del self._held[model]
            if all(one.id.key != model for one in self.state.models):
                self._report_use()

    async def index(self) -> tuple[IndexEntry, ...]:
        """All known versions of all models."""
        return (await self._control("index")).index

    async def load(self, name: str, version: str | None = None) -> None:
        """Load a model, as `service.registry.registry.Registry.load`, in the parent."""
        await self._control("load", name, version)

    async def unload(self, name: str) -> None:
        """Unload a model, as `service.registry.registry.Registry.unload`, in the parent."""
        await self._control("unload", name)

    async def _control(
        self, action: Literal["index", "load", "unload"], name: str = "", version: str | None = None
    ) -> Controlled:
        message = Control(next(self._ids), action, name, version)
        self._controls[message.id] = asyncio.get_running_loop().create_future()
        self._send(message)
        try:
            answer = await self._controls[message.id]
        finally:
            del self._controls[message.id]
        if answer.code:
            raise ERRORS[answer.code](answer.detail)
        return answer

    def _report_use(self) -> None:
        """Tell the parent which models this process uses, if that has changed."""
        models = {one.id.key: one.area for one in self.state.models}
        self._areas |= {key: area for key, area in models.items() if area}
        used = Using(self.state.serial, tuple(sorted({*models, *self._held})))
        if used != self._reported:
            self._reported = used
            self._send(used)
            for gone in self._areas.keys() - set(used.models):
                self.slots.forget(self._areas.pop(gone))

    def _waits(self, job: Job) -> bool:
        return self._jobs.get(self.slots.first + job.slot) is job

    # --- life cycle -------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Exchange messages with the parent until cancelled, or until the parent has ended."""
        self._connection = await Connection.open(self._socket, ToChild, self._on_message)
        for message in self._early:
            self._connection.send(message)
        await self._connection.ended
        self._replace(_all(self.state, phase="failed", failure="the parent process is gone"))
        for number in self._controls:
            self._on_message(Controlled(number, NotReady.code, "the parent process is gone"))

    def drain(self) -> None:
        """Report "not ready" from now on."""
        self._draining = True
        self._replace(self.state)

    async def close(self) -> None:
        """Close the connection and the slots."""
        if self._connection is not None:
            self._connection.close()
        self.slots.close()

    def listening(self) -> None:
        """Tell the parent that this process accepts connections."""
        self._send(Listening())

    # --- messages ---------------------------------------------------------------------------------------------

    def _on_message(self, message: ToChild) -> None:
        if isinstance(message, Outcomes):
            self._settle(message)
        elif isinstance(message, Controlled):
            answer = self._controls.get(message.id)
            if answer is not None and not answer.done():  # it may be cancelled
                answer.set_result(message)
        elif isinstance(message, ServiceState):
            self.seconds_per_image = message.seconds_per_image
            self._replace(message.state)

    def _settle(self, message: Outcomes) -> None:
        for slot, values, queue_s, infer_s, batch_size in message.rows:
            job = self._jobs.pop(slot, None)
            if job is not None and not job.done.done():
                job.began_at = job.enqueued_at + queue_s
                job.done.set_result(Result(np.frombuffer(values, np.float32), queue_s, infer_s, batch_size))
        for slot, code, detail, retry_after_s in message.errors:
            if job := self._jobs.pop(slot, None):
                job.fail(ERRORS[code](detail, retry_after_s=retry_after_s))
        freed = [slot for slot in message.freed if slot in self._unfreed]  # others belonged to an earlier process
        self._unfreed.difference_update(freed)
        self.slots.release(*[slot - self.slots.first for slot in freed])

    def _replace(self, state: BackendState) -> None:
        self.state = _all(state, phase="draining") if self._draining else state
        default = state.find()
        if default is not None and default.failure and not self.failed.is_set():
            self.abandon(NotReady(default.reason))
            self.failed.set()
        self._report_use()

    def _flush_soon(self, *, urgent: bool = True) -> None:
        """Send all changes of one iteration in one message; gather new jobs as `Batcher` does."""
        loop = asyncio.get_running_loop()
        if urgent and not self._urgent:
            if self._flushing:
                self._flushing.cancel()
            self._flushing, self._urgent = loop.call_soon(self._flush), True
        elif self._flushing is None:
            self._flushing = loop.call_later(GATHERING_S, self._flush)

    def _flush(self) -> None:
        self._flushing, self._urgent = None, False
        self._send(Submissions(tuple(self._new), tuple(self._promoted), tuple(self._cancelled)))
        for values in (self._new, self._promoted, self._cancelled):
            values.clear()

    def _send(self, message: FromChild) -> None:
        if self._connection is None:
            self._early.append(message)
        else:
            self._connection.send(message)


def _all(state: BackendState, **changes: Any) -> BackendState:
    """The same state with changes in all models; those that have failed stay as they are."""
    models = [one if one.failure else dataclasses.replace(one, **changes) for one in state.models]
    return dataclasses.replace(state, models=tuple(models))
