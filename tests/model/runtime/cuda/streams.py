"""A stand-in for a CUDA device on the CPU: work on a stream runs late, in any order that the events allow.

On a real device a missing wait is rarely noticed. Here the next piece of work is drawn at random from all streams that
may run, so a few seeds reveal it. Memory that was not written holds NaN, or noise.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from model.runtime.cuda.accelerator import Array, Work

BIG = 1 << 60


@dataclass(slots=True)
class FakeEvent:
    """Set by the piece of work that was put on the stream when it was recorded."""

    come: bool = False


@dataclass(slots=True)
class FakeStream:
    """Work that has not run yet; it waits for events of other streams."""

    work: deque[Work | FakeEvent] = field(default_factory=deque)

    @property
    def ready(self) -> bool:
        """Return whether the next piece of work may run now."""
        while self.work and isinstance(self.work[0], FakeEvent) and self.work[0].come:
            self.work.popleft()
        return bool(self.work) and not isinstance(self.work[0], FakeEvent)


class Shuffled:
    """A `model.runtime.cuda.accelerator.Accelerator`. A batch of n images uses n times `bytes_per_image`."""

    device = torch.device("cpu")

    def __init__(self, seed: int = 0, *, capacity: int = BIG, bytes_per_image: int = 1) -> None:
        self.capacity, self.bytes_per_image = capacity, bytes_per_image
        self.lock_failure: str | None = None
        self.deaf = False  # ignore waits, as a runner without them would
        self.capture_failures: dict[int, Exception] = {}
        self.tried: list[int] = []
        self.captured: list[int] = []
        self.copies = 0
        self._order = random.Random(seed)
        self._streams: list[FakeStream] = []
        self._images = 0
        self._warm: set[int] = set()

    def stream(self) -> FakeStream:
        """Return a new stream."""
        self._streams.append(FakeStream())
        return self._streams[-1]

    def record(self, stream: FakeStream) -> FakeEvent:
        """Return an event after the work on the stream."""
        event = FakeEvent()
        self._put(stream, lambda: setattr(event, "come", True))
        return event

    def wait(self, stream: FakeStream, event: FakeEvent) -> None:
        """Later work on the stream runs after the event."""
        if not self.deaf:
            stream.work.append(event)

    def synchronize(self, event: FakeEvent) -> None:
        """Run as little work as possible until the event has happened."""
        while not event.come:
            self._step()

    def copy(self, stream: FakeStream, target: Tensor, source: Tensor) -> None:
        """Copy when the stream's turn comes, with the source's content at that time."""
        self.copies += 1

        def work() -> None:
            target.copy_(source)

        self._put(stream, work)

    def run(self, stream: FakeStream, work: Work) -> None:
        """Run when the stream's turn comes, if there is enough memory."""
        if self.bytes_per_image * self._images > self.capacity:
            raise torch.OutOfMemoryError(f"no room for {self._images} images")
        self._put(stream, work)

    def capture(self, stream: FakeStream, work: Work) -> Work:
        """Return the work without running it; it must have run before."""
        size = max(self._warm - set(self.captured))
        self.captured.append(size)
        if size in self.capture_failures:
            raise self.capture_failures[size]
        return work

    def replay(self, stream: FakeStream, graph: Work) -> None:
        """Run the work again when the stream's turn comes."""
        self._put(stream, graph)

    def page_lock(self, memory: Array) -> str | None:
        """Return the configured result."""
        return self.lock_failure

    def host_buffer(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Allocate memory filled with noise or NaN."""
        return self._poisoned(shape, dtype)

    def device_buffer(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Allocate memory filled with noise or NaN."""
        self._images = shape[0]
        return self._poisoned(shape, dtype)

    def peak_of(self, work: Work) -> int:
        """Run the work to completion and return the bytes that it used."""
        self.wait_and_free()
        try:
            work()
            self.wait_and_free()
        finally:
            self.tried.append(self._images)
        self._warm.add(self._images)
        return self.bytes_per_image * self._images

    def free(self) -> int:
        """Return all of the memory: a run frees what it used."""
        return self.capacity

    def wait_and_free(self) -> None:
        """Run all work."""
        while any(stream.work for stream in self._streams):
            self._step()

    def memory(self) -> dict[Literal["allocated", "reserved", "total"], int]:
        """Return bytes of device memory."""
        return {"allocated": 1, "reserved": 2, "total": 3}

    def _put(self, stream: FakeStream, work: Work) -> None:
        stream.work.append(work)
        for _ in range(self._order.choice([0, 0, 1, 3])):  # the device works while the host continues
            if any(one.ready for one in self._streams):
                self._step()

    def _step(self) -> None:
        ready = [stream for stream in self._streams if stream.ready]
        if not ready:
            if not any(stream.work for stream in self._streams):
                raise AssertionError("waits for an event that is never recorded")
            raise AssertionError("streams wait for each other")
        work = self._order.choice(ready).work.popleft()
        assert not isinstance(work, FakeEvent)
        work()

    def _poisoned(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if dtype == torch.uint8:
            return torch.randint(0, 256, shape, dtype=dtype)
        return torch.full(shape, float("nan"), dtype=dtype)
