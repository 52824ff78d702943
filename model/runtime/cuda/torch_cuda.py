"""`Accelerator` on torch.cuda. It has little logic, because tests without a GPU do not run it; `bench.gpu` does."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from model.runtime.cuda.accelerator import Array, Event, Graph, Stream, Work

ALREADY_LOCKED = 712  # cudaErrorHostMemoryAlreadyRegistered


class TorchCuda:
    """One CUDA device, set as the current device of this process. TF32 is switched off, so float32 is exact float32."""

    def __init__(self, device: torch.device) -> None:
        index = torch.cuda.current_device() if device.index is None else device.index
        self._device = torch.device("cuda", index)
        torch.cuda.set_device(self._device)  # kernels of other libraries start on the current device
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        self._pool = torch.cuda.graph_pool_handle()

    @property
    def device(self) -> torch.device:
        """The device of its tensors."""
        return self._device

    def stream(self) -> Stream:
        """Return a new stream."""
        return torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    def record(self, stream: Stream) -> Event:
        """Return an event; a thread that waits for it sleeps instead of polling."""
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(stream)
        return event

    def wait(self, stream: Stream, event: Event) -> None:
        """Let later work on the stream run after the event."""
        stream.wait_event(event)

    def synchronize(self, event: Event) -> None:
        """Block until the event has happened."""
        event.synchronize()

    def copy(self, stream: Stream, target: Tensor, source: Tensor) -> None:
        """Copy with cudaMemcpyAsync."""
        with torch.cuda.stream(stream):
            target.copy_(source, non_blocking=True)

    def run(self, stream: Stream, work: Work) -> None:
        """Launch kernels on the stream."""
        with torch.cuda.stream(stream):
            work()

    def capture(self, stream: Stream, work: Work) -> Graph:
        """Record a graph.

        All graphs share one memory pool: they never run at once, and no result in the pool outlives a run.
        """
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=stream):
                work()
        except Exception:
            self._pool = torch.cuda.graph_pool_handle()  # the state of the pool is unknown after a failed recording
            raise
        return graph

    def replay(self, stream: Stream, graph: Graph) -> None:
        """Launch a graph."""
        with torch.cuda.stream(stream):
            graph.replay()

    def page_lock(self, memory: Array) -> str | None:
        """Page-lock with cudaHostRegister; returns None, or why that failed."""
        runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        error = runtime.cudaHostRegister(memory.ctypes.data, memory.nbytes, 0)
        if error == runtime.cudaError.success:
            return None
        self._forget_error()
        if int(error) == ALREADY_LOCKED:
            return None
        return f"cudaHostRegister: {runtime.cudaGetErrorString(error)}"

    def host_buffer(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Allocate page-locked memory of the host."""
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def device_buffer(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Allocate zeros on the device; they are written when this returns, because other streams do not wait."""
        buffer = torch.zeros(shape, dtype=dtype, device=self._device)
        torch.cuda.current_stream(self._device).synchronize()
        return buffer

    def peak_of(self, work: Work) -> int:
        """Run `work`; returns the most bytes that torch's allocator used in addition."""
        torch.cuda.synchronize(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_allocated(self._device)
        work()
        torch.cuda.synchronize(self._device)
        return torch.cuda.max_memory_allocated(self._device) - before

    def free(self) -> int:
        """Return the driver's free memory plus the unused memory of torch's allocator, in bytes."""
        unused = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return int(torch.cuda.mem_get_info(self._device)[0]) + unused

    def wait_and_free(self) -> None:
        """Wait and release cached memory. Raises after a sticky error, as every later call does."""
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()

    def memory(self) -> dict[Literal["allocated", "reserved", "total"], int]:
        """Return bytes of device memory."""
        return {
            "allocated": torch.cuda.memory_allocated(self._device),
            "reserved": torch.cuda.memory_reserved(self._device),
            "total": torch.cuda.get_device_properties(self._device).total_memory,
        }

    def _forget_error(self) -> None:
        """Clear the error of a failed runtime call, which torch's next launch would otherwise report."""
        try:
            torch.zeros(1, device=self._device).add_(1)
        except RuntimeError:
            torch.cuda.synchronize(self._device)
