"""`Accelerator` on torch.cuda. Thin on purpose: no test here runs it, `bench.gpu` does on a machine with a GPU."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from model.runtime.cuda.accelerator import Array, Event, Graph, Stream, Work

ALREADY_LOCKED = 712  # cudaErrorHostMemoryAlreadyRegistered


class TorchCuda:
    """One CUDA device, made the current one of this process. float32 means float32: TF32 is switched off."""

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
        """Where its tensors lie."""
        return self._device

    def stream(self) -> Stream:
        """A new stream."""
        return torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    def record(self, stream: Stream) -> Event:
        """A mark; whoever waits for it sleeps rather than spins."""
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(stream)
        return event

    def wait(self, stream: Stream, event: Event) -> None:
        """What comes later on the stream runs after the event."""
        stream.wait_event(event)

    def synchronize(self, event: Event) -> None:
        """Wait here until the event has come."""
        event.synchronize()

    def copy(self, stream: Stream, target: Tensor, source: Tensor) -> None:
        """cudaMemcpyAsync."""
        with torch.cuda.stream(stream):
            target.copy_(source, non_blocking=True)

    def run(self, stream: Stream, work: Work) -> None:
        """Start kernels on the stream."""
        with torch.cuda.stream(stream):
            work()

    def capture(self, stream: Stream, work: Work) -> Graph:
        """All graphs share one pool of memory: they never run at once, and nothing in it outlives a run."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=stream):
                work()
        except Exception:
            self._pool = torch.cuda.graph_pool_handle()  # a recording that failed leaves its pool in an unknown state
            raise
        return graph

    def replay(self, stream: Stream, graph: Graph) -> None:
        """One launch."""
        with torch.cuda.stream(stream):
            graph.replay()

    def page_lock(self, memory: Array) -> str | None:
        """cudaHostRegister; None, or why not."""
        runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        error = runtime.cudaHostRegister(memory.ctypes.data, memory.nbytes, 0)
        if error == runtime.cudaError.success:
            return None
        self._forget_error()
        if int(error) == ALREADY_LOCKED:
            return None
        return f"cudaHostRegister: {runtime.cudaGetErrorString(error)}"

    def host_buffer(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Page-locked memory of the host."""
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def device_buffer(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Memory of the device; zeros."""
        return torch.zeros(shape, dtype=dtype, device=self._device)

    def peak_of(self, work: Work) -> int:
        """As torch's allocator counts."""
        torch.cuda.synchronize(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_allocated(self._device)
        work()
        torch.cuda.synchronize(self._device)
        return torch.cuda.max_memory_allocated(self._device) - before

    def free(self) -> int:
        """What the driver has, and what torch's allocator keeps unused."""
        unused = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return int(torch.cuda.mem_get_info(self._device)[0]) + unused

    def settle(self) -> None:
        """Raises after a sticky error: every call does from then on."""
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()

    def memory(self) -> dict[Literal["allocated", "reserved", "total"], int]:
        """Bytes."""
        return {
            "allocated": torch.cuda.memory_allocated(self._device),
            "reserved": torch.cuda.memory_reserved(self._device),
            "total": torch.cuda.get_device_properties(self._device).total_memory,
        }

    def _forget_error(self) -> None:
        """A failed call of the runtime leaves its error behind, for torch's next launch to report: let that be here."""
        try:
            torch.zeros(1, device=self._device).add_(1)
        except RuntimeError:
            torch.cuda.synchronize(self._device)
