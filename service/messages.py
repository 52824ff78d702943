"""What the HTTP process and a device process say to each other, and how it is framed on their socket.

A frame is a 4-byte little-endian length and a pickle of one of these values; both ends are this program, started
together. Pixels never travel here: they lie in the arena.

    HTTP -> device   Start, Attach, RunBatch
    device -> HTTP   Loaded, Ready, BatchDone, BatchFailed, StartFailed
"""

from __future__ import annotations

import pickle
import struct
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from service.jobs import Memory, Task

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


@dataclass(frozen=True, slots=True)
class BatchDone:
    """One row for each job, in order; None where the model gave a value that is not finite."""

    id: int
    rows: tuple[np.ndarray | None, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class BatchFailed:
    """The forward pass raised; the process itself goes on."""

    id: int
    kind: Literal["error", "out_of_memory"]
    reason: str


@dataclass(frozen=True, slots=True)
class Ended:
    """Put by the receiving side behind the last message: the connection is closed."""


FromDevice = Loaded | Ready | StartFailed | BatchDone | BatchFailed | Ended
ToDevice = Start | Attach | RunBatch


def pack(message: FromDevice | ToDevice) -> bytes:
    """One frame."""
    body = pickle.dumps(message, protocol=5)
    return HEADER.pack(len(body)) + body


def unpack(body: bytes) -> Any:
    """The message in a frame's body."""
    return pickle.loads(body)
