"""A loaded model on its device: uint8 pixels in, float32 rows out. Also batch sizes and warm-up.

This module does not use requests or queues; `service.devices.worker` drives it. `Runner` runs on any device, one batch
after the other. For a GPU the service uses `model.runtime.cuda.runner`, which has the same protocol.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch

from model.backends.fusion import fuse_verified
from model.backends.selftest import choose_verified
from model.runtime.pixel_model import PARTS, Part, PixelModel
from model.vim import Vim

log = logging.getLogger("vim.model")

Array = np.ndarray
CPU_MAX_BATCH = 8  # more does not increase throughput on a CPU, and delays every image of the batch
CUDA_MAX_BATCH = 64


@dataclass(frozen=True, slots=True)
class Rows:
    """The results of one forward pass for n images, float32. Parts that were not requested are None."""

    scores: Array | None  # (n, classes), by `VimConfig.score_function`
    cls: Array | None  # (n, config.feature_dim), the input of the head
    mean: Array | None  # (n, config.embed_dim), mean of the patch tokens after the final norm
    finite: Array  # (n,) bool: False where a value is NaN or infinite
    widened: int = 0  # images that were computed again in a wider dtype, because a value was not finite


class BatchRunner(Protocol):
    """The protocol that the service uses: `verify_scan`, `attach`, `warm_up`, then batches by slot numbers."""

    vim: Vim
    max_batch: int
    handover_s: (
        float  # seconds before the end of a batch at which the next should be submitted, to keep the device busy
    )

    @property
    def depth(self) -> int:
        """The number of batches that may be submitted and not yet collected."""

    @property
    def device(self) -> torch.device:
        """The device of the model."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights, once the scan is verified."""

    def verify_scan(self, name: str) -> None:
        """Use the scan `name` after a self-test, see `model.backends.selftest`. Raises ScanError."""

    def attach(self, slots: Array) -> None:
        """Set the pixels of all later batches: uint8 (slots, H, W, 3), in memory that other processes write."""

    def warm_up(self) -> Iterator[tuple[int, float]]:
        """Run every batch size, yielding (size, seconds); may lower `max_batch` if memory is short."""

    def submit(self, slots: Sequence[int], parts: Collection[Part]) -> Any:
        """Start a batch of attached slots, which must not change before `collect`; returns its handle."""

    def collect(self, batch: Any, /) -> Rows:
        """Wait for a batch and return its rows. Batches are collected in order, by one thread at a time."""

    def memory(self) -> dict[Literal["allocated", "reserved", "total"], int]:
        """Return bytes of the device's own memory; empty if it has none."""

    def recover(self) -> None:
        """Recover from a failed batch. Raises if the device can no longer be used."""

    def describe(self) -> dict[str, str]:
        """Return, for `/info`, how the model runs and why."""


class Runner:
    """Run batches of up to `max_batch` images of `size` x `size` pixels, one after the other."""

    depth = 1
    handover_s = 0.0

    def __init__(self, vim: Vim, *, max_batch: int | None = None) -> None:
        self.vim = vim
        parameter = next(vim.parameters())
        self.device = parameter.device
        self.dtype = vim.patch_embed.proj.weight.dtype
        self.max_batch = max_batch or (CPU_MAX_BATCH if self.device.type == "cpu" else CUDA_MAX_BATCH)
        self._model = PixelModel(vim, narrow=self.device.type != "cpu")

    def verify_scan(self, name: str) -> None:
        """Use the scan `name` after a self-test, and fuse the layers if possible. Raises ScanError."""
        self.vim.use_scan(choose_verified(name, self.vim.config, self.device, self.dtype))
        fuse_verified(self.vim)

    def attach(self, slots: Array) -> None:
        """Set the pixels that `submit` reads: uint8 (slots, H, W, 3)."""
        self._slots = slots

    def warm_up(self) -> Iterator[tuple[int, float]]:
        """Run every batch size once, yielding (size, seconds); running out of memory lowers `max_batch`."""
        for size in batch_sizes(self.max_batch):
            start = time.perf_counter()
            try:
                self._warm_up(size)
            except Exception as error:
                if size == 1 or not is_out_of_memory(error):
                    raise
                self.max_batch = size // 2
                log.warning("a batch of %d does not fit into memory; batches of at most %d", size, self.max_batch)
                self.recover()
                return
            yield size, time.perf_counter() - start

    def _warm_up(self, size: int) -> None:
        height, width = self.vim.config.image_size
        self.run(np.zeros((size, height, width, 3), np.uint8), scores=True, cls=True, mean=True)

    @torch.inference_mode()
    def run(self, pixels: Array, *, scores: bool, cls: bool, mean: bool) -> Rows:
        """Run one forward pass over uint8 pixels (n, H, W, 3), n <= max_batch."""
        wanted = {"scores": scores, "cls": cls, "mean": mean}
        chosen = [part for part in PARTS if wanted[part]]
        found = self._model.parts(torch.from_numpy(pixels).to(self.device), chosen)
        rows = [found[part].cpu().numpy() if part in found else None for part in PARTS]
        return Rows(rows[0], rows[1], rows[2], finite_rows(rows))

    def submit(self, slots: Sequence[int], parts: Collection[Part]) -> Rows:
        """Run a batch of attached slots to completion."""
        scores, cls, mean = (part in parts for part in PARTS)
        return self.run(self._slots[list(slots)], scores=scores, cls=cls, mean=mean)

    def collect(self, batch: Rows, /) -> Rows:
        """Return the rows that `submit` returned."""
        return batch

    def describe(self) -> dict[str, str]:
        """Return an empty dict: this runner makes no choices."""
        return {}

    def memory(self) -> dict[Literal["allocated", "reserved", "total"], int]:
        """Return bytes of the device's own memory; empty on a CPU."""
        if self.device.type != "cuda":
            return {}
        return {
            "allocated": torch.cuda.memory_allocated(self.device),
            "reserved": torch.cuda.memory_reserved(self.device),
            "total": torch.cuda.get_device_properties(self.device).total_memory,
        }

    def recover(self) -> None:
        """Free cached memory after a failed batch. Raises if the device can no longer be used (a sticky CUDA error)."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()


def batch_sizes(largest: int) -> list[int]:
    """Return the sizes to warm up: powers of two, and the largest batch."""
    powers = [1 << n for n in range(largest.bit_length()) if 1 << n < largest]
    return [*powers, largest]


def is_out_of_memory(error: Exception) -> bool:
    """Return whether the device or the host ran out of memory; torch's CPU allocator says so only in the message.

    A failure while a graph is recorded may hide the cause, so the error's context is checked too.
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error):
        return True
    return isinstance(error.__context__, Exception) and is_out_of_memory(error.__context__)


def finite_rows(parts: Iterable[Array | None]) -> Array:
    """Parts (n, width) or None -> (n,) bool: whether all values of a row are finite."""
    finite: Array = np.logical_and.reduce([np.isfinite(part).all(axis=1) for part in parts if part is not None])
    return finite
