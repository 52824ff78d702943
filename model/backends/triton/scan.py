"""The scan in our own Triton kernels (`scan="triton"`), the default on CUDA; compiled when the process starts.

The fused layers are in `model.backends.triton.encoder`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.backends.triton import support as triton_support


def unavailable(device: torch.device) -> str | None:
    """Return None, or why the kernels do not run on `device`; they need CUDA compute capability 8.0."""
    return triton_support.unavailable(device)


def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor) -> Tensor:
    """The scan of `model.scan`, in float32. Raises ScanError for float64."""
    from model.backends.triton.kernels import compose

    with torch.cuda.device(triton_support.device_of(u)):
        return compose.scan(u, delta, A, B, C, D, z, delta_bias)


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution of `model.conv`, in float32."""
    from model.backends.triton.kernels import compose

    with torch.cuda.device(triton_support.device_of(x)):
        return compose.causal_conv(x, weight, bias)
