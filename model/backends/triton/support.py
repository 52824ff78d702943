"""Whether the Triton kernels run on a device. triton is only imported by this package, and only when it is used."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
from pathlib import Path

import torch

SMALLEST_CAPABILITY = (8, 0)


def unavailable(device: torch.device) -> str | None:
    """Return None, or why the kernels cannot run on `device` and how to fix that."""
    if device.type != "cuda":
        return f"its kernels are for CUDA devices, not for {device.type}"
    if torch.version.hip is not None:
        return "its kernels are for NVIDIA's CUDA; this torch is built for AMD's ROCm"
    capability = torch.cuda.get_device_capability(device)
    if capability < SMALLEST_CAPABILITY:
        return f"the device has compute capability {capability[0]}.{capability[1]}, Triton's kernels need 8.0"
    return _unusable()


def _unusable() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; the CUDA builds of torch include it"
    if os.environ.get("TRITON_INTERPRET", "0") not in ("0", ""):
        return "TRITON_INTERPRET is set: kernels would be interpreted on the CPU; unset it"
    if not any(shutil.which(name) for name in (os.environ.get("CC", "gcc"), "gcc", "clang")):
        return "Triton needs a C compiler when a kernel first runs; install gcc, or set CC"
    try:
        importlib.import_module("triton")
    except (ImportError, OSError) as error:
        return f"triton cannot be imported: {error}"
    return None


def device_of(x: torch.Tensor) -> torch.device | int:
    """Return x's device for `torch.cuda.device`, or -1 (none) on a CPU. Triton launches on the current device."""
    return x.device if x.is_cuda else -1


def use_cache(directory: Path) -> None:
    """Cache compiled kernels below `directory`, unless TRITON_CACHE_DIR is set. Call it before the first kernel runs.

    After a restart no kernel is compiled again, and the home directory may be read-only.
    """
    os.environ.setdefault("TRITON_CACHE_DIR", str(directory / "triton"))
