"""The messages between the HTTP processes and their parent. Pixels are not sent: they are in slots.

    parent to HTTP process   ChildStart, ServiceState, Outcomes, Controlled
    HTTP process to parent   Listening, Submissions, Using, Control

A job is identified by its slot, counted over the slots of all HTTP processes, until the parent has freed the slot.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from service.ipc import Message
from service.jobs import RequestClass, Task
from service.status import BackendState, IndexEntry


class ChildStart(Message, frozen=True):
    """The settings of one HTTP process; the first message that it receives."""

    settings_json: str
    name: str  # in the log and in the names of the metrics' files
    number: int  # counted from 0
    addresses: tuple[tuple[int, tuple[Any, ...]], ...]  # family and address of each listener
    metrics: str  # directory
    created: int  # when the service began, Unix time


class Listening(Message, frozen=True):
    """This HTTP process accepts connections."""


class Submission(NamedTuple):
    """A decoded image for the queue."""

    slot: int
    task: Task
    enqueued_at: float  # all processes share the monotonic clock
    request_class: RequestClass
    model: int  # key


class Submissions(Message, frozen=True):
    """Changes since the last message: new jobs, slots of jobs to promote, slots of jobs to cancel."""

    new: tuple[Submission, ...] = ()
    promoted: tuple[int, ...] = ()
    cancelled: tuple[int, ...] = ()


class Row(NamedTuple):
    """The result of one job."""

    slot: int
    values: bytes  # float32
    queue_s: float
    infer_s: float
    batch_size: int


class Failed(NamedTuple):
    """The error of one job: the fields of a `ServiceError`."""

    slot: int
    code: str
    detail: str
    retry_after_s: float | None


class Outcomes(Message, frozen=True):
    """Results, errors, and slots that no device reads any more."""

    rows: tuple[Row, ...]
    errors: tuple[Failed, ...]
    freed: tuple[int, ...]


class ServiceState(Message, frozen=True):
    """The state of the models, sent whenever it changes."""

    state: BackendState
    seconds_per_image: Mapping[int, float]  # by model (key)


class Using(Message, frozen=True):
    """The models (keys) that the HTTP process may still submit jobs for, after the state with this serial."""

    serial: int
    models: tuple[int, ...]


class Control(Message, frozen=True):
    """List, load or unload models."""

    id: int
    action: Literal["index", "load", "unload"]
    name: str = ""
    version: str | None = None


class Controlled(Message, frozen=True):
    """The answer to Control: the index, or the code and detail of a `ServiceError`."""

    id: int
    code: str = ""
    detail: str = ""
    index: tuple[IndexEntry, ...] = ()


ToChild = ChildStart | ServiceState | Outcomes | Controlled
FromChild = Listening | Submissions | Using | Control
