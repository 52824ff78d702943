"""In the parent: gives the jobs of all HTTP processes to the models, and sends the results back.

A job is identified by its slot. The HTTP process may use the slot again when no device reads it any more, even if it no
longer waits for the result. The other end of the socket is `service.server.prefork.remote_registry`.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from typing import TypeVar

from service.devices.slots import Slots
from service.errors import InternalError, ServiceError
from service.ipc import Connection
from service.jobs import Job, Result
from service.registry.registry import Registry
from service.server.prefork.messages import (
    Control,
    Controlled,
    Failed,
    Outcomes,
    Row,
    ServiceState,
    Submission,
    Submissions,
    Using,
)
from service.settings import Settings
from service.status import IndexEntry
from service.telemetry.metrics import Metrics

log = logging.getLogger("vim.parent")

T = TypeVar("T")


class LeasedSlots(Slots):
    """All slots, each leased to one HTTP process. `freed` lists the slots that only their HTTP process still holds."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.freed: list[int] = []
        self.any_freed = asyncio.Event()
        self.acquire(count)

    def release(self, *slots: int) -> None:
        """Remove a holder of each slot."""
        super().release(*slots)
        if freed := [slot for slot in slots if self._holders[slot] == 1]:
            self.freed += freed
            self.any_freed.set()


class Broker:
    """The models, and a channel for each HTTP process."""

    def __init__(self, settings: Settings, metrics: Metrics, worker: str) -> None:
        self._each = settings.queue_images  # slots of one HTTP process
        self.slots = LeasedSlots(self._each * settings.http_workers)
        self.registry = Registry(settings, metrics, worker, self.slots)
        self._channels: dict[int, Channel] = {}

    async def run(self) -> None:
        """Run the models, and forward freed slots and changes of state, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.registry.run())
            group.create_task(self._forward_freed())
            group.create_task(self._forward_state())

    def open(self, number: int, connection: Connection) -> Channel:
        """Open a channel for the HTTP process with this number, and send it the current state."""
        self._channels[number] = channel = Channel(self.registry, self.slots, connection)
        channel.send_state(self._state())
        self.registry.users.add(channel)
        return channel

    def close(self, number: int) -> None:
        """Cancel the jobs of an HTTP process that has ended."""
        if channel := self._channels.pop(number, None):
            channel.close()
            self.registry.users.discard(channel)
            self.registry.users_changed()

    def send_state(self) -> None:
        """Send the state to every HTTP process that has not received it yet."""
        state = self._state()
        for channel in self._channels.values():
            channel.send_state(state)

    def _state(self) -> ServiceState:
        return ServiceState(self.registry.state, self.registry.seconds_per_image)

    async def _forward_freed(self) -> None:
        while True:
            await self.slots.any_freed.wait()
            self.slots.any_freed.clear()
            freed, self.slots.freed = self.slots.freed, []
            for slot in freed:
                if channel := self._channels.get(slot // self._each):
                    channel.free(slot)

    async def _forward_state(self) -> None:
        while True:
            await self.registry.changed.wait()
            self.registry.changed.clear()
            self.send_state()


class Channel:
    """The jobs of one HTTP process that are queued or with a device, and the models that it uses."""

    def __init__(self, registry: Registry, slots: LeasedSlots, connection: Connection) -> None:
        self.seen = 0  # see `service.registry.registry.User`
        self._registry = registry
        self._slots = slots
        self._connection = connection
        self._jobs: dict[int, Job] = {}
        self._lent: set[int] = set()  # slots that the process has submitted and not got back
        self._rows: list[Row] = []
        self._errors: list[Failed] = []
        self._freed: list[int] = []
        self._sent: ServiceState | None = None
        self._using: frozenset[int] = frozenset()  # models, as the process has confirmed
        self._unconfirmed: dict[int, frozenset[int]] = {}  # models of the states after that, by serial
        self._controls: set[asyncio.Task[None]] = set()
        self._closed = False

    def receive(self, message: Submissions | Using | Control) -> None:
        """Handle a message of the HTTP process."""
        if isinstance(message, Submissions):
            self._update(message)
        elif isinstance(message, Using):
            self._confirm(message)
        else:
            task = asyncio.create_task(self._control(message))
            self._controls.add(task)
            task.add_done_callback(self._controls.discard)

    def uses(self, model: int) -> bool:
        """Return whether the process may still submit jobs for this model (key)."""
        return model in self._using or any(model in models for models in self._unconfirmed.values())

    def _update(self, message: Submissions) -> None:
        for submission in message.new:
            self._submit(submission)
        for slot in message.promoted:
            if slot in self._jobs:
                self._registry.promote(self._jobs[slot])
        for slot in message.cancelled:
            self._cancel(slot)

    def _confirm(self, message: Using) -> None:
        self.seen, self._using = message.serial, frozenset(message.models)
        self._unconfirmed = {serial: models for serial, models in self._unconfirmed.items() if serial > self.seen}
        self._registry.users_changed()

    async def _control(self, message: Control) -> None:
        index: tuple[IndexEntry, ...] = ()
        try:
            if message.action == "index":
                index = await self._registry.index()
            elif message.action == "load":
                await self._registry.load(message.name, message.version)
            else:
                await self._registry.unload(message.name)
        except ServiceError as error:
            self._connection.send(Controlled(message.id, error.code, error.detail))
        except Exception:
            log.exception("%s of model %s", message.action, message.name)
            answer = Controlled(message.id, InternalError.code, "an internal error; the log has the details")
            self._connection.send(answer)
        else:
            self._connection.send(Controlled(message.id, index=index))

    def send_state(self, state: ServiceState) -> None:
        """Send the state, unless the process has received it already."""
        if state != self._sent:
            self._sent = state
            self._unconfirmed[state.state.serial] = frozenset([one.id.key for one in state.state.models])
            self._connection.send(state)

    def free(self, slot: int) -> None:
        """Tell the HTTP process that no device reads this slot any more, unless it was submitted by a predecessor."""
        if slot in self._lent and slot not in self._jobs:
            self._lent.discard(slot)
            self._send_soon(self._freed, slot)

    def close(self) -> None:
        """Cancel all jobs. A batch that a device already runs continues."""
        self._closed = True
        for slot in tuple(self._jobs):
            self._cancel(slot)

    def _submit(self, submission: Submission) -> None:
        slot = submission.slot
        done: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        job = Job(slot, submission.task, submission.enqueued_at, done, submission.request_class, submission.model)
        self._jobs[slot] = job
        self._lent.add(slot)
        self._slots.hold(slot)
        done.add_done_callback(functools.partial(self._on_done, job))
        self._registry.submit(job)

    def _cancel(self, slot: int) -> None:
        if job := self._jobs.get(slot):
            self._registry.cancel(job)
            job.done.cancel()

    def _on_done(self, job: Job, done: asyncio.Future[Result]) -> None:
        if self._jobs.get(job.slot) is job:
            del self._jobs[job.slot]
        self._slots.release(job.slot)  # before the result is queued, so that both are sent in one message
        if not done.cancelled():
            if (error := done.exception()) is None:
                self._send_soon(self._rows, _row(job.slot, done.result()))
            else:
                assert isinstance(error, ServiceError)
                self._send_soon(self._errors, Failed(job.slot, error.code, error.detail, error.retry_after_s))

    def _send_soon(self, values: list[T], value: T) -> None:
        """Queue a value for sending; all values of one iteration of the event loop are sent in one message."""
        if not self._closed:
            if not (self._rows or self._errors or self._freed):
                asyncio.get_running_loop().call_soon(self._flush)
            values.append(value)

    def _flush(self) -> None:
        self._connection.send(Outcomes(tuple(self._rows), tuple(self._errors), tuple(self._freed)))
        self._rows.clear()
        self._errors.clear()
        self._freed.clear()


def _row(slot: int, result: Result) -> Row:
    return Row(slot, result.values.tobytes(), result.queue_s, result.infer_s, result.batch_size)
