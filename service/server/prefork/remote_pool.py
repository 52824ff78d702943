"""In an HTTP process: submits jobs to the parent's pool over a socket (a `service.engine.backend.Backend`).

The parent sends the state of the devices whenever it changes. So every HTTP process can answer at once for the whole
service, and all answers are the same. The other end of the socket is `service.server.prefork.broker`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import socket

import numpy as np

from service.devices.batcher import GATHERED, GATHERING_S
from service.devices.slots import Slots
from service.errors import NotReady, all_errors
from service.ipc import Connection
from service.jobs import Job, Result
from service.server.prefork.messages import (
    FromChild,
    Listening,
    Outcomes,
    ServiceState,
    Submission,
    Submissions,
    ToChild,
)
from service.status import BackendState

ERRORS = {error.code: error for error in all_errors()}


class RemotePool:
    """The parent's queue and devices."""

    def __init__(self, slots: Slots, socket_end: socket.socket) -> None:
        """`slots`: those of this process, in the memory of the parent."""
        self.slots = slots
        self.state = BackendState()
        self.failed = asyncio.Event()
        self.seconds_per_image = 0.0
        self._socket = socket_end
        self._connection: Connection | None = None
        self._early: list[FromChild] = []  # messages from before the connection was open
        self._draining = False
        self._jobs: dict[int, Job] = {}  # by slot, counted over all HTTP processes
        self._unfreed: set[int] = set()  # slots that the parent has not freed
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
        self._new.append(Submission(slot, job.task, job.enqueued_at, job.request_class))
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

    def _waits(self, job: Job) -> bool:
        return self._jobs.get(self.slots.first + job.slot) is job

    # --- life cycle -------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Exchange messages with the parent until cancelled, or until the parent has ended."""
        self._connection = await Connection.open(self._socket, ToChild, self._on_message)
        for message in self._early:
            self._connection.send(message)
        await self._connection.ended
        self._replace(dataclasses.replace(self.state, phase="failed", failure="the parent process is gone"))

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
        elif isinstance(message, ServiceState):
            self.seconds_per_image = message.seconds_per_image
            if message.state.model is not None and self.state.model is None:
                self.slots.map(message.state.model.image_size)
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
        failed = bool(state.failure) and not self.state.failure
        self.state = dataclasses.replace(state, phase="draining") if self._draining and not state.failure else state
        if failed:
            self.abandon(NotReady(state.reason))
            self.failed.set()

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
