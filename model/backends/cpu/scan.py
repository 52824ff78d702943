"""The scan on a CPU (`scan="numba"`): channels in vector lanes, states in the first-level cache.

This module checks and lays out the arguments, which `model.backends.cpu.kernels` does not check. For float64, and where
gradients are required, the torch scan and convolution run instead.
"""

from __future__ import annotations

import math
import platform
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from model import conv
from model.backends import torch_scan

WIDTH = 16  # model.jit.simd.LANES, which cannot be imported without numba
LOG2E = 1.4426950408889634


def unavailable(device: torch.device) -> str | None:
    """Return None, or why the scan does not run on this device or machine."""
    return _broken() if device.type == "cpu" else "it runs on a CPU"


@cache
def _broken() -> str | None:
    try:
        import llvmlite.binding as llvm

        from model.backends.cpu.kernels import trial_kernel

        if platform.machine() in ("x86_64", "AMD64") and not llvm.get_host_cpu_features().get("fma"):
            return "this CPU has no fused multiply-add"
        out = torch.zeros(WIDTH)
        trial_kernel()(1, out)
    except Exception as error:  # a missing or broken compiler must not stop the service
        return f"numba does not work here ({type(error).__name__}: {error}); pip install numba, if it is missing"
    return None if bool((out == 1).all()) else "code that numba compiles here gives wrong numbers"


def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor) -> Tensor:
    """The scan of `model.scan`, in float32, or in float64 if the inputs are."""
    if _needs_torch(u, delta, A, B, C, D, z, delta_bias):
        return torch_scan.scan(u, delta, A, B, C, D, z, delta_bias)
    from model.backends.cpu.kernels import scan_kernel

    directions, images, length, channels = u.shape
    rates = _padded(A.transpose(1, 2).float() * LOG2E).contiguous()
    (us, u_side), (deltas, delta_side), (Bs, B_side), (Cs, C_side) = map(
        _directions, (_padded(u), _padded(delta), B, C)
    )
    gate, gate_row = _contiguous_rows(_padded(z))
    bias, skip = (_padded(x.float()).contiguous() for x in (delta_bias, D))
    width, states = rates.shape[-1], A.shape[-1]
    out = torch.empty(images, length, width)
    scan_kernel(states, 0)(
        images * width // WIDTH,
        *(directions, length, width, us, u_side, deltas, delta_side, 0, None, bias, rates),
        *(Bs, B_side, states, Cs, C_side, states, skip, gate, gate_row, torch.ones(1), out, None),
    )
    return out[..., :channels].to(u.dtype)


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution of `model.conv`, in float32, or in float64 if the inputs are."""
    if _needs_torch(x, weight) or (bias is not None and _needs_torch(bias)):
        return conv.causal_conv(x, weight, bias)
    from model.backends.cpu.kernels import TOKENS, conv_kernel

    images, length, channels = x.shape
    directions, _, kernel_width = weight.shape
    rows, row = _contiguous_rows(_padded(x))
    kernel = _padded(weight.transpose(1, 2).float()).contiguous()
    width = kernel.shape[-1]
    biases = torch.zeros(directions, width) if bias is None else _padded(bias.float()).contiguous()
    out = torch.empty(directions, images, length, width)
    jobs = images * math.ceil(length / TOKENS)
    conv_kernel(kernel_width)(jobs, directions, images, length, width, rows, row, kernel, biases, out, None)
    return out[..., :channels].to(x.dtype)


def _needs_torch(*tensors: Tensor) -> bool:
    wanted = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    return wanted or any(x.dtype == torch.float64 for x in tensors)


def _padded(x: Tensor) -> Tensor:
    """Pad channels (the last axis) with zeros to whole vectors."""
    missing = -x.shape[-1] % WIDTH
    return F.pad(x, (0, missing)) if missing else x


def _directions(x: Tensor) -> tuple[Tensor, int]:
    """Return (S, B, L, K) as contiguous float32, and the stride between its directions, 0 if they are one array."""
    if x.stride(0) == 0:
        return x[0].float().contiguous(), 0
    x = x.float().contiguous()
    return x, x.stride(0)


def _contiguous_rows(x: Tensor) -> tuple[Tensor, int]:
    """Return (B, L, E) as float32 with contiguous rows, and the stride between rows; images are L rows apart."""
    x = x.float()
    images, length, _ = x.shape
    regular = length > 1 and x.stride(2) == 1 and (images == 1 or x.stride(0) == length * x.stride(1))
    x = x if regular else x.contiguous()
    return x, x.stride(1)
