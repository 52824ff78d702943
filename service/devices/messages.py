"""Messages between the process that owns the devices and its device processes. Pixels are not sent: they are in slots.

to the device process     Start, Attach, WarmUp, RunBatch
from the device process   Loaded, Warmed, Ready, BatchDone, BatchFailed, StartFailed
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from service.ipc import Message
from service.jobs import Area, Memory, Task
from service.status import ModelInfo


class Start(Message, frozen=True):
    """Load this model on this device. A message, because every user of the machine can read command arguments."""

    settings_json: str
    device: str
    background: bool = False  # load at low priority, because other models serve


class Loaded(Message, frozen=True):
    """The model is in memory."""

    model: ModelInfo
    siblings: tuple[str, ...] = ()  # further devices of the same kind, when no device was selected by number


class Attach(Message, frozen=True):
    """Map the pixels of all slots. The process has inherited the descriptor of their memory file."""

    slots: int
    area: Area


class WarmUp(Message, frozen=True):
    """Run the next pass of the warm-up. The answer is Warmed, or Ready after the last one."""


class Warmed(Message, frozen=True):
    """A pass of the warm-up has ended; there are more."""


class Ready(Message, frozen=True):
    """The device process has passed its self-test and has warmed up."""

    max_batch: int
    batch_seconds: Mapping[int, float]  # of the warm-up, by each batch size that fits into memory
    scan: Mapping[str, str]
    memory: Mapping[Memory, int]  # bytes of the device's own memory; empty where it has none
    depth: int = 1  # batches that it takes at once
    host_bytes: int = 0  # memory of the device process
    handover_s: float = 0.0  # how long before the end of a batch the next one should arrive
    runner: Mapping[str, str] = {}  # how the model runs, and why; for /info


class StartFailed(Message, frozen=True):
    """The device process cannot serve; the reason is for the operator."""

    reason: str


class RunBatch(Message, frozen=True):
    """Run these slots in one forward pass, each for its own task."""

    id: int
    slots: tuple[int, ...]
    tasks: tuple[Task, ...]


class BatchDone(Message, frozen=True):
    """One row for each job, in order: float32 bytes; None where the model gave a value that is not finite."""

    id: int
    rows: tuple[bytes | None, ...]
    seconds: float
    widened: int = 0  # images that were computed again in a wider dtype


class BatchFailed(Message, frozen=True):
    """The forward pass raised an exception; the process continues."""

    id: int
    kind: Literal["error", "out_of_memory"]
    reason: str


FromDevice = Loaded | Warmed | Ready | StartFailed | BatchDone | BatchFailed
ToDevice = Start | Attach | WarmUp | RunBatch
