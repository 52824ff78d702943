"""What is checked and timed: the released configurations with seeded weights and images, on our runner."""

from __future__ import annotations

import functools
import mmap
import os
from dataclasses import dataclass

import numpy as np
import torch

from bench.gpu.standins import Immediate
from model.config import VimConfig
from model.preprocessing.recipe import Preprocess
from model.runtime.cuda.accelerator import Accelerator
from model.runtime.cuda.precision import in_precision
from model.runtime.cuda.runner import CudaRunner
from model.runtime.cuda.torch_cuda import TorchCuda
from model.scan import choose, names_on
from model.vim import Vim

WIDTHS = {"tiny": 192, "small": 384, "base": 768}
BATCHES = (1, 8, 64, 128)
# Plain torch and CPU scans are not timed.
NOT_TIMED = ("torch", "reference", "numba")


@dataclass(frozen=True, slots=True)
class Plan:
    """The cases of a run. A dry run covers every code path in miniature."""

    device: torch.device
    dry_run: bool

    @property
    def configs(self) -> dict[str, VimConfig]:
        """Configurations by name."""
        if self.dry_run:
            small = VimConfig(image_size=(48, 48), embed_dim=32, depth=2, num_classes=7)
            return {"tiny 48": small, "tiny 48 stride 8": small.replace(stride=8)}
        at_224 = {f"{name} 224": VimConfig(embed_dim=width) for name, width in WIDTHS.items()}
        large = (1248, 1248)
        return at_224 | {
            "tiny 224 stride 8": VimConfig(stride=8),
            "tiny 1248": VimConfig(image_size=large),
            "base 1248": VimConfig(image_size=large, embed_dim=WIDTHS["base"]),
        }

    @property
    def deit_sizes(self) -> tuple[int, ...]:
        """Image sizes at which DeiT-tiny is timed."""
        return (48,) if self.dry_run else (224, 512, 1248)

    @property
    def batches(self) -> tuple[int, ...]:
        """Numbers of images in a batch."""
        return (1, 2) if self.dry_run else BATCHES

    @property
    def scans(self) -> list[str]:
        """Our backends that run here and are meant for a GPU."""
        found = [name for name in names_on(self.device) if name not in NOT_TIMED]
        return found or ["torch"]

    def accelerator(self) -> Accelerator:
        """Return the device for our runner."""
        return Immediate() if self.device.type == "cpu" else TorchCuda(self.device)


def random_model(config: VimConfig, device: torch.device) -> Vim:
    """Return a model with seeded float32 weights; the recurrence is initialised as in the reference."""
    vim = Vim(config, choose("torch", device).fn).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in vim.named_parameters():
        inputs = parameter[0].numel() if parameter.ndim > 1 else 2500
        parameter.data = inputs**-0.5 * torch.randn(parameter.shape, generator=generator)
        if name.endswith(("A_log", "A_b_log")):
            parameter.data += torch.arange(1, parameter.shape[1] + 1).float().log()
        elif "norm" in name or name.endswith((".D", ".D_b")):
            parameter.data += 1
        elif "dt_proj" in name and name.endswith("bias"):
            parameter.data -= 4
    vim.preprocess = Preprocess(config.image_size[0])
    return vim.to(device)


@functools.cache  # page-locked memory must not be freed, or locked again at the same address
def slots(count: int, size: int) -> np.ndarray:
    """Return noise in an anonymous memory file, as the service uses: uint8 (count, size, size, 3)."""
    descriptor = os.memfd_create("bench-pixels")
    os.ftruncate(descriptor, count * size * size * 3)
    memory = np.frombuffer(mmap.mmap(descriptor, 0), np.uint8).reshape(count, size, size, 3)
    os.close(descriptor)
    memory[...] = np.random.default_rng(0).integers(0, 256, memory.shape, np.uint8)
    return memory


def runner(plan: Plan, vim: Vim, scan: str, dtype: torch.dtype, pixels: np.ndarray, max_batch: int) -> CudaRunner:
    """Return our runner after its warm-up. Raises OutOfMemoryError if `max_batch` does not fit."""
    found = CudaRunner(in_precision(vim, scan, dtype), plan.accelerator(), max_batch=max_batch)
    found.attach(pixels)
    list(found.warm_up())
    if found.max_batch < max_batch:
        raise torch.OutOfMemoryError(f"a batch of {max_batch} does not fit; {found.max_batch} does")
    return found
