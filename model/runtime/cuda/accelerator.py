"""The operations that the runner needs of a CUDA device: streams, events, graphs, memory.

Work on one stream runs in order. Two streams run concurrently unless one waits for an event of the other. No method
waits for the device except `synchronize`, `wait_and_free`, `capture` and `peak_of`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray
Work = Callable[[], None]
Stream = Any
Event = Any
Graph = Any


class Accelerator(Protocol):
    """One device. `TorchCuda` is the real one; tests use an implementation that reorders the streams."""

    @property
    def device(self) -> torch.device:
        """The device of its tensors."""

    def stream(self) -> Stream:
        """Return a new stream."""

    def record(self, stream: Stream) -> Event:
        """Return an event after everything on the stream now."""

    def wait(self, stream: Stream, event: Event) -> None:
        """Let later work on the stream run after the event."""

    def synchronize(self, event: Event) -> None:
        """Block until the event has happened. Raises the errors of the device's work so far."""

    def copy(self, stream: Stream, target: Tensor, source: Tensor) -> None:
        """Put a copy on the stream; it is asynchronous if the host's memory is page-locked."""

    def run(self, stream: Stream, work: Work) -> None:
        """Put the kernels that `work` launches on the stream."""

    def capture(self, stream: Stream, work: Work) -> Graph:
        """Record the kernels that `work` launches as a graph; `work` has run before. Raises the recording's errors."""

    def replay(self, stream: Stream, graph: Graph) -> None:
        """Put a recorded graph on the stream."""

    def page_lock(self, memory: Array) -> str | None:
        """Page-lock an array that lives as long as the process; returns None, or why that failed."""

    def host_buffer(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Allocate page-locked memory of the host."""

    def device_buffer(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Allocate memory of the device."""

    def peak_of(self, work: Work) -> int:
        """Run `work` to completion; returns the most bytes of device memory that it used in addition."""

    def free(self) -> int:
        """Return the bytes of device memory that are available."""

    def wait_and_free(self) -> None:
        """Wait for all work and release cached memory. Raises if the device can no longer be used."""

    def memory(self) -> dict[Literal["allocated", "reserved", "total"], int]:
        """Return bytes of device memory."""
