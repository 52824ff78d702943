"""A loaded model on its device: uint8 pixels in, float32 rows out. Batch sizes and warm-up live here.

Knows nothing of requests or queues; `service.worker` drives it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from model.fused import fuse
from model.selftest import choose_verified
from model.vim import Vim

log = logging.getLogger("vim.model")

Array = np.ndarray

CPU_MAX_BATCH = 8  # more gains no throughput on a CPU and delays everybody in the batch
CUDA_MAX_BATCH = 64


@dataclass(frozen=True, slots=True)
class Rows:
    """What one forward pass says about n images, float32. What was not asked for is None."""

    scores: Array | None  # (n, classes), softmax
    cls: Array | None  # (n, D), what the head sees
    mean: Array | None  # (n, D), mean of the patch tokens after the final norm
    finite: Array  # (n,) bool: False where a value is NaN or infinite


class Runner:
    """Runs batches of up to `max_batch` images of `size` x `size` pixels."""

    def __init__(self, vim: Vim, *, max_batch: int | None = None) -> None:
        self.vim = vim
        parameter = next(vim.parameters())
        self.device = parameter.device
        self.dtype = vim.patch_embed.proj.weight.dtype
        self.max_batch = max_batch or (CPU_MAX_BATCH if self.device.type == "cpu" else CUDA_MAX_BATCH)
        self._mean = torch.tensor(vim.preprocess.mean, device=self.device)[:, None, None]
        self._std = torch.tensor(vim.preprocess.std, device=self.device)[:, None, None]

    def verify_scan(self, name: str) -> None:
        """Replace the model's scan by one that agrees with the reference loop. Raises ScanError."""
        self.vim.use_scan(choose_verified(name, self.vim.config, self.device, self.dtype))
        fuse(self.vim)

    def batch_sizes(self) -> list[int]:
        """The sizes that are warmed up: powers of two, and the largest batch."""
        powers = [1 << n for n in range(self.max_batch.bit_length()) if 1 << n < self.max_batch]
        return [*powers, self.max_batch]

    def warm_up(self) -> Iterator[tuple[int, float]]:
        """Run every batch size once, yielding (size, seconds); the first that does not fit lowers `max_batch`."""
        for size in self.batch_sizes():
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
        """One forward pass over uint8 pixels (n, H, W, 3), n <= max_batch."""
        tokens = self.vim.forward_tokens(self._normalised(pixels))
        features = self.vim.pool(tokens)
        parts = {
            "scores": self.vim.forward_head(features).float().softmax(-1) if scores else None,
            "cls": features if cls else None,
            "mean": self.vim.mean_of_patches(tokens) if mean else None,
        }
        rows = {name: None if part is None else part.float().cpu().numpy() for name, part in parts.items()}
        return Rows(**rows, finite=_finite(rows.values()))

    def memory(self) -> dict[Literal["allocated", "reserved", "total"], int]:
        """Bytes of the device's own memory; empty on a CPU."""
        if self.device.type != "cuda":
            return {}
        return {
            "allocated": torch.cuda.memory_allocated(self.device),
            "reserved": torch.cuda.memory_reserved(self.device),
            "total": torch.cuda.get_device_properties(self.device).total_memory,
        }

    def recover(self) -> None:
        """After a failed batch: free cached memory. Raises when the device is beyond use (a sticky CUDA error)."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()

    def _normalised(self, pixels: Array) -> Tensor:
        """uint8 (n, H, W, 3) -> (n, 3, H, W) as the reference's ToTensor and Normalize give it."""
        images = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2)
        return images.float().div_(255).sub_(self._mean).div_(self._std).to(self.dtype)


def is_out_of_memory(error: Exception) -> bool:
    """Did the device, or the host, run out of memory? torch's CPU allocator says so in words only."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def _finite(parts: Iterable[Array | None]) -> Array:
    finite: Array = np.logical_and.reduce([np.isfinite(part).all(axis=1) for part in parts if part is not None])
    return finite
