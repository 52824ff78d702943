"""The cases that are checked and timed: the released configurations with seeded weights and images, on our runner."""

from __future__ import annotations

import functools
import importlib
import mmap
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.gpu import jobs, standins
from bench.gpu.build import EXTENSIONS
from bench.gpu.entry import SkippedError
from bench.gpu.standins import Immediate
from bench.gpu.timing import Clock
from model.backends import mamba_ssm
from model.config import VimConfig
from model.preprocessing.recipe import Preprocess
from model.runtime.cuda.accelerator import Accelerator
from model.runtime.cuda.precision import in_precision
from model.runtime.cuda.runner import CudaRunner
from model.runtime.cuda.torch_cuda import TorchCuda
from model.scan import ScanChoice, choose
from model.vim import Vim

WIDTHS = {"tiny": 192, "small": 384, "base": 768}
TINY = "tiny 224"


@dataclass(frozen=True, slots=True)
class Plan:
    """The cases of a run and its folders. A dry run covers every code path in miniature."""

    dry_run: bool
    work: Path  # modules that are built, caches
    results: Path  # the folder of the result file
    golden: Path | None = None

    @property
    def device(self) -> torch.device:
        """The device of all cases."""
        return torch.device("cpu") if self.dry_run else torch.device("cuda", 0)

    @property
    def jobs(self) -> Path:
        """The folder of the commands that run beside the entries."""
        return self.work / "jobs"

    @property
    def widths(self) -> dict[str, int]:
        """Widths of the released models by name."""
        return {"tiny": 16} if self.dry_run else WIDTHS

    @property
    def launches(self) -> int:
        """Launches of one kernel in a graph: at batch 1 a single one is shorter than the gap before it."""
        return 1 if self.dry_run else 50

    @property
    def repeats(self) -> int:
        """Runs of which all bits must be the same."""
        return 2 if self.dry_run else 20

    @property
    def batches(self) -> tuple[int, ...]:
        """Numbers of images for kernels."""
        return (1, 2) if self.dry_run else (1, 8, 64, 128)

    @property
    def small_and_large(self) -> tuple[int, int]:
        """The two numbers of images that are compared in every case."""
        return (1, 2) if self.dry_run else (1, 64)

    def config(self, name: str, **changes: Any) -> VimConfig:
        """Return the released configuration of that width, or its miniature."""
        width = self.widths.get(name, 16)
        small = {"image_size": (16, 16), "depth": 1, "num_classes": 7} if self.dry_run else {}
        return VimConfig(embed_dim=width).replace(**{**changes, **small})

    def accelerator(self) -> Accelerator:
        """Return the device for our runner."""
        return Immediate() if self.dry_run else TorchCuda(self.device)

    def clock(self) -> Clock:
        """Return the clock for whole models."""
        return Clock(self.device, 0, 2, 0.0) if self.dry_run else Clock(self.device)


def case(name: str, dtype: torch.dtype) -> str:
    """Return the case of an entry, see `bench.gpu.entry`."""
    return f"{name} {short(dtype)}"


def short(dtype: torch.dtype) -> str:
    """Return a dtype's name."""
    return str(dtype).removeprefix("torch.")


def prepare(plan: Plan) -> None:
    """Make this process ready for entries: exact float32, and modules that were built importable."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False  # as `TorchCuda` has it
    if plan.dry_run:
        standins.install()
    sys.path[:0] = [str(plan.work / "built" / name) for name in EXTENSIONS]


def need_baseline(plan: Plan, seconds: float = 15) -> None:
    """Wait for the baseline's modules. Raises SkippedError or PostponedError if they cannot be used."""
    for name in EXTENSIONS:
        jobs.wait_for(plan.jobs, name, seconds)
    importlib.invalidate_caches()  # the folders were empty, or absent, when this process looked first
    reason = mamba_ssm.unavailable(plan.device)
    if reason is not None:
        raise SkippedError(reason)


def choice(plan: Plan, scan: str) -> ScanChoice:
    """Return a scan by name. Raises SkippedError if it is the baseline's and that was not built, else ScanError."""
    if scan == "mamba_ssm":
        need_baseline(plan)
    return choose(scan, plan.device)


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
    choice(plan, scan)
    found = CudaRunner(in_precision(vim, scan, dtype), plan.accelerator(), max_batch=max_batch)
    found.attach(pixels)
    list(found.warm_up())
    if found.max_batch < max_batch:
        raise torch.OutOfMemoryError(f"a batch of {max_batch} does not fit; {found.max_batch} does")
    return found
