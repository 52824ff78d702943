"""What travels through the service: a job is one image, a batch is what one forward pass takes. Values only."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Pooling = Literal["cls", "mean"]
Memory = Literal["allocated", "reserved", "total"]


@dataclass(frozen=True, slots=True)
class Task:
    """What a request wants of each of its images: class scores, or an embedding."""

    op: Literal["classify", "embed"]
    pooling: Pooling = "cls"

    @property
    def part(self) -> Literal["scores", "cls", "mean"]:
        """The row of a forward pass that answers it."""
        return "scores" if self.op == "classify" else self.pooling


@dataclass(frozen=True, slots=True)
class Result:
    """The answer for one image: softmax scores (classes,) or an embedding (D,), float32, and what it took."""

    values: np.ndarray
    queue_s: float
    infer_s: float
    batch_size: int


@dataclass(slots=True, eq=False)
class Job:
    """One decoded image waiting for the device: its slot in the arena, what is wanted, and who waits for it."""

    slot: int
    task: Task
    enqueued_at: float
    done: asyncio.Future[Result] = field(repr=False)
    deaths_alone: int = 0  # device processes that died with this image alone in flight

    def answer(self, result: Result) -> None:
        """Give the result to whoever waits, if anyone still does."""
        if not self.done.done():
            self.done.set_result(result)

    def fail(self, error: Exception) -> None:
        """Give the error to whoever waits, if anyone still does."""
        if not self.done.done():
            self.done.set_exception(error)


@dataclass(frozen=True, slots=True)
class Timings:
    """Where a request's time went, in seconds; of several images the slowest counts, stage by stage."""

    decode_s: float = 0.0
    preprocess_s: float = 0.0
    queue_s: float = 0.0
    infer_s: float = 0.0
    total_s: float = 0.0
    batch_size: int = 0

    def slowest(self, other: Timings) -> Timings:
        """Stage by stage the larger of the two."""
        pairs = ((getattr(self, name), getattr(other, name)) for name in Timings.__slots__)
        return Timings(*(max(pair) for pair in pairs))
