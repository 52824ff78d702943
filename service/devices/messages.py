"""What the processes of a service say to each other, and how it is framed on their sockets.

A frame is a 4-byte little-endian length and a pickle of one of these values; both ends are this program, started
together. Pixels never travel here: they lie in the arena.

    HTTP (or parent) -> device   Start, Attach, RunBatch
    device -> HTTP (or parent)   Loaded, Ready, BatchDone, BatchFailed, StartFailed

and where several HTTP processes share the devices of one parent (VIM_HTTP_WORKERS):

    parent -> HTTP   Begin, Loaded, Told, Landed
    HTTP -> parent   Listening, Orders, Holding
"""

from __future__ import annotations

import pickle
import struct
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from service.errors import ServiceError
from service.jobs import Memory, RequestClass, Task

HEADER = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Start:
    """Load this model on this device. Not given as arguments: everybody can read those."""

    settings_json: str
    device: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """The model is in memory. `info` is JSON-ready and goes to `/info` as it is."""

    size: int  # side of the square image, pixels
    preprocess: dict[str, Any]
    labels: tuple[str, ...]
    info: dict[str, Any]
    siblings: tuple[str, ...] = ()  # devices like this one that there are beside it, if none was asked for by number


@dataclass(frozen=True, slots=True)
class Attach:
    """Map the arena (its descriptor was inherited) with this many slots."""

    slots: int


@dataclass(frozen=True, slots=True)
class Ready:
    """Self-tested and warm. `batch_seconds` holds the warm-up time of each batch size that fits into memory."""

    max_batch: int
    batch_seconds: dict[int, float]
    scan: dict[str, str]
    memory: dict[Memory, int]  # bytes of the device's own memory; empty where it has none
    depth: int = 1  # batches that it may have at once
    handover_s: float = 0.0  # how long before a batch ends the next one should come
    runner: dict[str, str] = field(default_factory=dict)  # how the model runs, and why so; for /info


@dataclass(frozen=True, slots=True)
class StartFailed:
    """The device process cannot serve; the reason is for the person who configured it."""

    reason: str


@dataclass(frozen=True, slots=True)
class RunBatch:
    """Run these slots in one forward pass, each for its own task."""

    id: int
    slots: tuple[int, ...]
    tasks: tuple[Task, ...]

    def __reduce__(self) -> tuple[type[RunBatch], tuple[object, ...]]:
        """As a call: dataclasses with slots and arrays take two to ten times as long by themselves."""
        return RunBatch, (self.id, self.slots, self.tasks)


@dataclass(frozen=True, slots=True)
class BatchDone:
    """One row for each job, in order; None where the model gave a value that is not finite."""

    id: int
    rows: tuple[np.ndarray | None, ...]  # float32; those that were received are read-only
    seconds: float

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        """As above."""
        rows = tuple(None if row is None else row.tobytes() for row in self.rows)
        return _batch_done, (self.id, rows, self.seconds)


def _batch_done(number: int, rows: tuple[bytes | None, ...], seconds: float) -> BatchDone:
    return BatchDone(number, tuple(None if row is None else np.frombuffer(row, np.float32) for row in rows), seconds)


@dataclass(frozen=True, slots=True)
class BatchFailed:
    """The forward pass raised; the process itself goes on."""

    id: int
    kind: Literal["error", "out_of_memory"]
    reason: str


@dataclass(frozen=True, slots=True)
class Ended:
    """Put by the receiving side behind the last message: the connection is closed."""


@dataclass(frozen=True, slots=True)
class Begin:
    """Listen there and answer; the rest of the arena and of the counts belongs to others."""

    settings_json: str
    name: str  # in the log and among the files of the metrics
    number: int  # counted from 0
    addresses: tuple[tuple[int, Any], ...]  # family and address of each
    metrics: str  # directory
    created: int  # when the service began, Unix time


@dataclass(frozen=True, slots=True)
class Listening:
    """This HTTP process takes connections."""


class Order(NamedTuple):
    """A decoded image for the queue. Its slot is its name until it is free again."""

    slot: int  # of the whole arena
    task: Task
    enqueued_at: float  # the monotonic clock is one for all processes
    request_class: RequestClass


class Orders(NamedTuple):
    """What has come up since the last turn of the event loop: new ones, then those that interactive requests wait for
    now, then those that nobody waits for any more.
    """

    new: tuple[Order, ...] = ()
    hurried: tuple[int, ...] = ()
    dropped: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Holding:
    """How an HTTP process fares: images admitted and not yet answered, and whether its threads are all overdue."""

    images: int
    overdue: bool


class Row(NamedTuple):
    """A result by slot, in what is quick to pickle: there is one for each image."""

    slot: int
    values: bytes  # float32
    queue_s: float
    infer_s: float
    batch_size: int


class Landed(NamedTuple):
    """Results, errors by slot, and slots that no device reads any more."""

    rows: tuple[Row, ...]
    errors: tuple[tuple[int, ServiceError], ...]
    free: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Told:
    """The state of the fleet and of the other HTTP processes, whenever it changes."""

    state: str
    failure: str
    has_been_ready: bool
    info: dict[str, Any] | None
    max_batch: int
    seconds_per_image: float
    images: int  # of all HTTP processes
    overdue: bool  # at least one of them


ToHttp = Begin | Loaded | Told | Landed
FromHttp = Listening | Orders | Holding
FromDevice = Loaded | Ready | StartFailed | BatchDone | BatchFailed | Ended
ToDevice = Start | Attach | RunBatch


def pack(message: FromDevice | ToDevice | FromHttp | ToHttp) -> bytes:
    """One frame."""
    body = pickle.dumps(message, protocol=5)
    return HEADER.pack(len(body)) + body


def unpack(body: bytes) -> Any:
    """The message in a frame's body."""
    return pickle.loads(body)
