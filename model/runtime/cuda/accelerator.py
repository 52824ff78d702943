"""What the runner asks of a CUDA device, and nothing else of torch.cuda: streams, events, graphs, memory.

What is put on a stream runs in that order; two streams run beside each other unless one waits for an event of the
other. Nothing here waits for the device except `synchronize`, `settle`, `capture` and `peak_of`.
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
    """One device. `TorchCuda` is the real one; tests have one that shuffles the streams."""

    @property
    def device(self) -> torch.device:
        """Where its tensors lie."""

    def stream(self) -> Stream:
        """A new stream."""

    def record(self, stream: Stream) -> Event:
        """A mark behind all that is on the stream now."""

    def wait(self, stream: Stream, event: Event) -> None:
        """What is put on the stream from now on runs after the event."""

    def synchronize(self, event: Event) -> None:
        """Wait here until the event has come. Raises what has gone wrong on the device meanwhile."""

    def copy(self, stream: Stream, target: Tensor, source: Tensor) -> None:
        """Put a copy on the stream; it runs by itself where the host's side is page-locked."""

    def run(self, stream: Stream, work: Work) -> None:
        """Put the kernels that `work` starts on the stream."""

    def capture(self, stream: Stream, work: Work) -> Graph:
        """Record the kernels that `work` starts, which has run before. Raises what the recording raises."""

    def replay(self, stream: Stream, graph: Graph) -> None:
        """Put a recorded graph on the stream."""

    def page_lock(self, memory: Array) -> str | None:
        """Lock the pages of an array that lives as long as the process; None, or why that cannot be."""

    def host_buffer(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Page-locked memory of the host."""

    def device_buffer(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Memory of the device."""

    def peak_of(self, work: Work) -> int:
        """Run `work` to its end; bytes of the device's memory that it took beyond what was taken before."""

    def free(self) -> int:
        """Bytes of the device's memory that a run may still take."""

    def settle(self) -> None:
        """Wait for everything and let go of cached memory. Raises when the device is beyond use."""

    def memory(self) -> dict[Literal["allocated", "reserved", "total"], int]:
        """Bytes."""
