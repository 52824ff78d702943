"""A loaded model on a CUDA device: one graph for each batch size, two batches in flight.

    slots ─► copy stream: page-locked pixels ─► buffer ─► compute stream: input ─► graph ─► output ─► page-locked rows

A batch runs in the graph of the next larger size. The remaining rows of its input do not matter, because images do not
influence each other. While one batch computes, the pixels of the next are copied into the other buffer.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from model.runtime.cuda.accelerator import Accelerator, Array, Event, Graph, Stream
from model.runtime.cuda.batches import runs_of, size_for, sizes_that_fit
from model.runtime.cuda.precision import Precision, choose_precision, in_precision
from model.runtime.cuda.row_layout import RowLayout
from model.runtime.pixel_model import Part, PixelModel
from model.runtime.runner import Rows, batch_sizes, is_out_of_memory
from model.vim import Vim

log = logging.getLogger("vim.model")

MAX_BATCH = 128  # a current GPU is fully used by fewer images, and every image waits for the whole batch
DEPTH = 2
TIMED = 3  # runs of each size in the warm-up; the median is reported


@dataclass(slots=True)
class BatchBuffers:
    """The buffers of one batch: its pixels on the device, and its rows on the host."""

    staged: Tensor  # (max_batch, H, W, 3) uint8 on the device
    gathered: Tensor | None  # the same in page-locked memory of the host, where the slots themselves are not
    rows: Tensor  # (max_batch, columns) float32 in page-locked memory of the host
    busy: bool = False


@dataclass(frozen=True, slots=True)
class SubmittedBatch:
    """A batch that is submitted and not yet collected."""

    buffers: BatchBuffers
    slots: tuple[int, ...]
    parts: frozenset[Part]
    done: Event

    @property
    def images(self) -> int:
        """The number of images."""
        return len(self.slots)


class CudaRunner:
    """A `model.runtime.runner.BatchRunner` for CUDA.

    `vim` is on `accelerator`'s device, in float32 if `choose_dtype` is true, else in the dtype that was requested.
    """

    depth = DEPTH

    def __init__(
        self, vim: Vim, accelerator: Accelerator, *, max_batch: int | None = None, choose_dtype: bool = False
    ) -> None:
        self.vim = vim
        self.max_batch = max_batch or MAX_BATCH
        self.dtype_why = "requested"
        self.margins = ""
        self.graphs = "not recorded yet"
        self.page_lock = "no pixels attached yet"
        self.handover_s = 0.0
        self._choose_dtype = choose_dtype
        self._accelerator = accelerator
        self._copies, self._compute = accelerator.stream(), accelerator.stream()
        self._sizes: list[int] = []
        self._graphs: dict[int, Graph] = {}
        self._buffers: list[BatchBuffers] = []
        self._next = 0
        self._direct = False
        self._slots: Tensor
        self._input: Tensor
        self._output: Tensor
        self._layout = RowLayout.of(vim.config)
        self._exact: PixelModel | None = None  # in float32, for rows that are not finite in float16
        self._model: PixelModel

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self._accelerator.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.vim.patch_embed.proj.weight.dtype

    # --- start-up ---------------------------------------------------------------------------------------------

    def verify_scan(self, name: str) -> None:
        """Use the scan `name` after a self-test and, with `choose_dtype`, the narrowest dtype that agrees with float32.

        Raises ScanError.
        """
        if self._choose_dtype:
            precision = choose_precision(self.vim, name)
        else:
            precision = Precision(in_precision(self.vim, name, self.dtype), self.dtype_why)
        self.vim, self.dtype_why, self.margins = precision.vim, precision.why, precision.margins
        self._exact = PixelModel(precision.exact, narrow=True) if precision.exact is not None else None
        self._accelerator.wait_and_free()

    def attach(self, slots: Array) -> None:
        """Set the pixels of all later batches: uint8 (slots, H, W, 3), in memory that other processes write."""
        self._model = PixelModel(self.vim, narrow=True)
        self._slots = torch.from_numpy(slots)
        reason = self._accelerator.page_lock(slots)
        self.page_lock = "pixels are page-locked" if reason is None else f"pixels are gathered first: {reason}"
        log.info("%s", self.page_lock)
        self.max_batch = min(self.max_batch, len(slots))
        self._direct = reason is None

    def warm_up(self) -> Iterator[tuple[int, float]]:
        """Find the largest batch, record a graph for every size, then run each: yields (size, seconds)."""
        self._sizes = sizes_that_fit(batch_sizes(self.max_batch), self._peak_of, self._accelerator.free)
        self._allocate(self._sizes[-1])
        self._accelerator.wait_and_free()
        self._record()
        self.max_batch = self._sizes[-1]
        self._buffers = [self._new_buffers() for _ in range(DEPTH)]
        for size in self._sizes:
            yield size, self._time(size)
        self.handover_s = self._time_copy(self.max_batch)

    def _allocate(self, size: int) -> None:
        """Allocate input and output for batches of up to `size`; graphs recorded earlier keep the old ones."""
        self._input = self._accelerator.device_buffer(size, *self._slots.shape[1:], dtype=torch.uint8)
        self._output = self._accelerator.device_buffer(size, self._layout.columns, dtype=torch.float32)

    def _peak_of(self, size: int) -> int | None:
        def once() -> None:
            self._allocate(size)
            self._accelerator.run(self._compute, lambda: self._forward(size))

        try:
            return self._accelerator.peak_of(once)
        except Exception as error:
            if size == 1 or not is_out_of_memory(error):
                raise
            self._accelerator.wait_and_free()
            return None

    def _record(self) -> None:
        """Record the graphs, the largest first: the smaller ones then fit into its memory."""
        for size in self._sizes[::-1]:
            try:
                self._graphs[size] = self._capture(size)
            except Exception as error:
                self._accelerator.wait_and_free()
                if size > 1 and not self._graphs and is_out_of_memory(error):
                    log.warning("the graph of a batch of %d does not fit into memory", size)
                    self._sizes.remove(size)
                    continue
                self._graphs.clear()
                self.graphs = f"none, each kernel is launched individually: {error}"
                log.warning("CUDA graphs: %s", self.graphs)
                return
        self.graphs = f"batches of {', '.join(map(str, self._sizes))}"

    def _capture(self, size: int) -> Graph:
        return self._accelerator.capture(self._compute, lambda: self._forward(size))

    def _time(self, size: int) -> float:
        slots = [slot % len(self._slots) for slot in range(size)]
        seconds = []
        for _ in range(TIMED):
            start = time.perf_counter()
            self.collect(self.submit(slots, self._layout.parts))
            seconds.append(time.perf_counter() - start)
        return sorted(seconds)[TIMED // 2]

    def _time_copy(self, size: int) -> float:
        start = time.perf_counter()
        self._accelerator.synchronize(self._stage(self._buffers[0], list(range(min(size, len(self._slots))))))
        return time.perf_counter() - start

    # --- batches ----------------------------------------------------------------------------------------------

    def submit(self, slots: Sequence[int], parts: Collection[Part]) -> SubmittedBatch:
        """Start a batch of n attached slots, n <= max_batch, which must not change before `collect`.

        At most `depth` batches may be in flight, and they are collected in order. Raises RuntimeError for one more.
        """
        buffers = self._buffers[self._next]
        if buffers.busy:
            raise RuntimeError(f"more than {self.depth} batches in flight")
        self._next = (self._next + 1) % len(self._buffers)
        images = len(slots)
        self._accelerator.wait(self._compute, self._stage(buffers, slots))
        self._accelerator.copy(self._compute, self._input[:images], buffers.staged[:images])
        self._compute_batch(size_for(images, self._sizes))
        self._accelerator.copy(self._compute, buffers.rows[:images], self._output[:images])
        buffers.busy = True
        return SubmittedBatch(buffers, tuple(slots), frozenset(parts), self._accelerator.record(self._compute))

    def collect(self, batch: SubmittedBatch) -> Rows:
        """Wait for a batch and return its rows; raises the device's errors."""
        try:
            self._accelerator.synchronize(batch.done)
        finally:
            batch.buffers.busy = False
        packed = batch.buffers.rows[: batch.images].numpy().copy()
        rows = self._layout.unpack(packed, batch.parts)
        return rows if self._exact is None or rows.finite.all() else self._widened(self._exact, batch, rows)

    def _widened(self, exact: PixelModel, batch: SubmittedBatch, rows: Rows) -> Rows:
        """Compute the rows that are not finite again in float32, which has a larger range than float16."""
        bad = np.flatnonzero(~rows.finite)
        try:
            again = self._rows_of(exact, [batch.slots[index] for index in bad], batch.parts)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            log.warning("%d images that overflow %s do not fit into memory in float32", len(bad), self.dtype)
            self._accelerator.wait_and_free()
            return rows
        for part in batch.parts:
            getattr(rows, part)[bad] = getattr(again, part)
        rows.finite[bad] = again.finite
        return dataclasses.replace(rows, widened=len(bad))

    @torch.inference_mode()
    def _rows_of(self, model: PixelModel, slots: list[int], parts: frozenset[Part]) -> Rows:
        accelerator, stream, count = self._accelerator, self._compute, len(slots)
        pixels = accelerator.device_buffer(count, *self._slots.shape[1:], dtype=torch.uint8)
        output = accelerator.device_buffer(count, self._layout.columns, dtype=torch.float32)
        packed = accelerator.host_buffer(count, self._layout.columns, dtype=torch.float32)
        accelerator.copy(stream, pixels, self._slots[slots])
        accelerator.run(stream, lambda: self._compute_rows(model, pixels, output))
        accelerator.copy(stream, packed, output)
        accelerator.synchronize(accelerator.record(stream))
        return self._layout.unpack(packed.numpy(), parts)

    def compute_again(self, images: int) -> None:
        """Run the batch that is in the input again, on `compute_stream`, to measure it."""
        self._compute_batch(size_for(images, self._sizes))

    def drop_graphs(self) -> None:
        """Forget the recorded graphs: later batches launch each kernel individually. For checks."""
        self._graphs.clear()

    @property
    def compute_stream(self) -> Stream:
        """The stream on which batches compute, one after the other."""
        return self._compute

    def memory(self) -> dict[Literal["allocated", "reserved", "total"], int]:
        """Return bytes of device memory."""
        return self._accelerator.memory()

    def recover(self) -> None:
        """Recover from a failed batch. Raises if the device can no longer be used (a sticky CUDA error)."""
        self._accelerator.wait_and_free()

    def describe(self) -> dict[str, str]:
        """Return, for `/info`, the reason for the dtype, the graphs, and how pixels reach the device."""
        found = {"dtype": self.dtype_why, "graphs": self.graphs, "pixels": self.page_lock}
        return found | ({"margins": self.margins} if self.margins else {})

    def _stage(self, buffers: BatchBuffers, slots: Sequence[int]) -> Event:
        """Copy pixels to the device; neighbouring slots are one copy."""
        source, pieces = self._slots, runs_of(slots)
        if buffers.gathered is not None:
            torch.index_select(self._slots, 0, torch.tensor(slots), out=buffers.gathered[: len(slots)])
            source, pieces = buffers.gathered, [(0, 0, len(slots))]
        for first, slot, count in pieces:
            self._accelerator.copy(self._copies, buffers.staged[first : first + count], source[slot : slot + count])
        return self._accelerator.record(self._copies)

    def _compute_batch(self, size: int) -> None:
        if size in self._graphs:
            self._accelerator.replay(self._compute, self._graphs[size])
        else:
            self._accelerator.run(self._compute, lambda: self._forward(size))

    @torch.inference_mode()
    def _forward(self, size: int) -> None:
        """Compute the first `size` rows of the output from the input: every part that the model has."""
        self._compute_rows(self._model, self._input[:size], self._output[:size])

    def _compute_rows(self, model: PixelModel, pixels: Tensor, rows: Tensor) -> None:
        self._layout.pack(model.parts(pixels, self._layout.parts), rows)

    def _new_buffers(self) -> BatchBuffers:
        shape = (self.max_batch, *self._slots.shape[1:])
        return BatchBuffers(
            staged=self._accelerator.device_buffer(*shape, dtype=torch.uint8),
            gathered=None if self._direct else self._accelerator.host_buffer(*shape, dtype=torch.uint8),
            rows=self._accelerator.host_buffer(self.max_batch, self._layout.columns, dtype=torch.float32),
        )
