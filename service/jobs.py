"""Values that all parts of the service use: an image, its task, its job, its result. No behaviour."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from model.preprocessing.recipe import Crop
from service.errors import ServiceError

Pooling = Literal["cls", "mean"]
Part = Literal["scores", "cls", "mean", "in_domain"]
Memory = Literal["allocated", "reserved", "total"]
RequestClass = Literal["interactive", "bulk"]

Pixels = np.ndarray  # uint8 (H, W, 3)
Image = bytes | Pixels  # an encoded file, or pixels
Item = Image | ServiceError  # an image, or the reason why there is none


@dataclass(frozen=True, slots=True)
class Link:
    """An http or https URL in the place of an image, as the client wrote it, not checked."""

    url: str


Given = Item | Link  # an image as a request has it; `service.api.request.links` fetches links


class Task(NamedTuple):
    """What to compute for each image of a request: class scores, an embedding, or both."""

    op: Literal["classify", "embed"]
    pooling: Pooling = "cls"
    embedding_too: bool = False  # after the scores
    crop: Crop = "center"  # the part of the image that the model receives
    heads: bool = False  # classify by custom heads: the result is the embedding, and the heads compute scores from it
    in_domain: bool = False  # after all: whether the image is like those that the model was taught with

    @property
    def own_scores(self) -> bool:
        """Whether the model's own classifier computes the scores."""
        return self.op == "classify" and not self.heads

    @property
    def parts(self) -> tuple[Part, ...]:
        """The outputs of a forward pass that answer the task when they are concatenated."""
        scores: tuple[Part, ...] = ("scores",) if self.own_scores else ()
        embedding: tuple[Part, ...] = (self.pooling,) if self.embedding_too or not self.own_scores else ()
        in_domain: tuple[Part, ...] = ("in_domain",) if self.in_domain else ()
        return scores + embedding + in_domain


class Area(NamedTuple):
    """The pixels of one loaded model in the memory file of `service.devices.slots`, slot after slot."""

    offset: int  # in bytes, a multiple of the page size
    size: int  # side of the model's image, pixels

    @property
    def slot_bytes(self) -> int:
        """The bytes of one slot: uint8 (size, size, 3)."""
        return self.size * self.size * 3


@dataclass(frozen=True, slots=True)
class Result:
    """One image's answer: scores (classes,), an embedding (D,), or both concatenated; float32."""

    values: np.ndarray
    queue_s: float
    infer_s: float
    batch_size: int
    in_domain: float | None = None  # from 0 to 1; None where it was not asked for


Outcome = Result | ServiceError


@dataclass(slots=True, eq=False)
class Job:
    """One decoded image that waits for a device: its slot, its task, its model, and the future of its result."""

    slot: int
    task: Task
    enqueued_at: float
    done: asyncio.Future[Result] = field(repr=False)
    request_class: RequestClass = "interactive"
    model: int = 0  # the key of the loaded model (`service.status.ModelId`)
    began_at: float | None = None  # when a device last received it
    deaths_alone: int = 0  # device processes that ended while this was their only image
    suspect: bool = False  # its batch has failed: from then on it runs alone on its device

    def fail(self, error: Exception) -> None:
        """Settle the job with an error, unless it is settled or cancelled already."""
        if not self.done.done():
            self.done.set_exception(error)


@dataclass(frozen=True, slots=True)
class Timings:
    """The time of each stage of a request, in seconds. For several images each stage is that of the slowest image."""

    decode_s: float = 0.0
    preprocess_s: float = 0.0
    queue_s: float = 0.0
    infer_s: float = 0.0
    total_s: float = 0.0
    batch_size: int = 0

    def slowest(self, other: Timings) -> Timings:
        """The larger value of each stage."""
        return Timings(
            max(self.decode_s, other.decode_s),
            max(self.preprocess_s, other.preprocess_s),
            max(self.queue_s, other.queue_s),
            max(self.infer_s, other.infer_s),
            max(self.total_s, other.total_s),
            max(self.batch_size, other.batch_size),
        )
