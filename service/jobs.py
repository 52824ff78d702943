"""What travels through the service: a job is one image, a batch is what one forward pass takes. Values only."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Pooling = Literal["cls", "mean"]
Part = Literal["scores", "cls", "mean"]
Memory = Literal["allocated", "reserved", "total"]
RequestClass = Literal["interactive", "bulk"]


@dataclass(frozen=True, slots=True)
class Task:
    """What a request wants of each of its images: class scores, an embedding, or both."""

    op: Literal["classify", "embed"]
    pooling: Pooling = "cls"
    embedding_too: bool = False  # behind the scores

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts of a forward pass whose rows, put end to end, answer it."""
        scores: tuple[Part, ...] = ("scores",) if self.op == "classify" else ()
        return (*scores, self.pooling) if self.op == "embed" or self.embedding_too else scores

    def __reduce__(self) -> tuple[type[Task], tuple[object, ...]]:
        """Pickled as a call, which is quicker than a dataclass with slots is by itself: one goes with each image."""
        return Task, (self.op, self.pooling, self.embedding_too)


@dataclass(frozen=True, slots=True)
class Result:
    """One image's answer: softmax scores (classes,), an embedding (D,), or both end to end; float32."""

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
    request_class: RequestClass = "interactive"
    began_at: float | None = None  # when a device was last given it
    deaths_alone: int = 0  # device processes that died with this image alone in flight
    suspect: bool = False  # its batch has failed: from then on nothing else is with the device while it is

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
        return Timings(
            max(self.decode_s, other.decode_s),
            max(self.preprocess_s, other.preprocess_s),
            max(self.queue_s, other.queue_s),
            max(self.infer_s, other.infer_s),
            max(self.total_s, other.total_s),
            max(self.batch_size, other.batch_size),
        )
