"""The scan on the CUDA kernels of mamba-ssm and causal-conv1d (`scan="mamba_ssm"`), one call for both directions.

Only their compiled modules are imported. The package `mamba_ssm` itself imports about fifty others, fails on many
machines, and is not needed. The kernels run from the first token to the last, so the second direction is reversed and
passed as further channels with their own B and C, which the kernel accepts by group of channels.

Requirements of the kernels (csrc/selective_scan/selective_scan.cpp of 2.3.2.post1, csrc/causal_conv1d.cpp of 1.7.0):

    u, delta    (B, S E, L)      float32, float16 or bfloat16, all of one dtype, L fastest
    A           (S E, N)         float32
    B, C        (B, S, N, L)     the dtype of u, L fastest
    D, bias     (S E,)           float32, dense
    strides     32 bits: at most 2^32 elements between the first and the last image
    conv x      (B, E, L)        here with E fastest: E and the other strides multiples of 8; kernel width 2 to 4
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model import conv
from model.errors import ScanError

SCAN, CONV = "selective_scan_cuda", "causal_conv1d_cuda"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
INSTALL = "`make install-cuda` compiles it against the torch that is installed"

# For a length that fills the kernel's blocks, a state takes 163 instead of 290 instructions (counted in the machine
# code, not timed). Shorter lengths are padded, unless that makes them longer by more than this factor.
PAD_AT_MOST = 1.5
# Elements of one call: the kernels use 32-bit offsets; half of that range is safe for their arithmetic.
CALL_ELEMENTS = 1 << 31
CHANNELS_PER_VECTOR = 8


def unavailable(device: torch.device) -> str | None:
    """Return None, or why the kernels do not run on `device` and how to fix that."""
    if device.type != "cuda":
        return "its kernels are for CUDA devices"
    return next((reason for reason in map(_missing, (SCAN, CONV)) if reason is not None), None)


def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor) -> Tensor:
    """The scan of `model.scan`; the state is float32. Raises ScanError for a dtype that the kernel does not support."""
    if u.dtype not in DTYPES:
        raise ScanError(f"scan 'mamba_ssm' computes in float32, float16 or bfloat16, not in {u.dtype}")
    directions, images, length, channels = u.shape
    group = max(1, CALL_ELEMENTS // (directions * channels * padded(length)))
    parts = [slice(first, first + group) for first in range(0, images, group)]
    done = [_scan_group(u[:, p], delta[:, p], A, B[:, p], C[:, p], D, delta_bias) for p in parts]
    y = done[0] if len(done) == 1 else torch.cat(done)
    return (y * F.silu(z.float())).to(z.dtype)


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution of `model.conv`; torch computes widths and dtypes that the kernel does not support."""
    directions, channels, kernel_width = weight.shape
    if channels % CHANNELS_PER_VECTOR or not 2 <= kernel_width <= 4 or x.dtype not in DTYPES:
        return conv.causal_conv(x, weight, bias)
    both = torch.cat((x, x.flip(1)), dim=2) if directions == 2 else x.contiguous()
    out = torch.empty_like(both)
    _convolve(both.mT, weight.reshape(-1, kernel_width), None if bias is None else bias.reshape(-1), out.mT)
    return torch.stack((out[..., :channels], out[..., channels:].flip(1))) if directions == 2 else out[None]


def padded(length: int) -> int:
    """Return the length at which the kernel runs: rounded up to its block size, unless that exceeds PAD_AT_MOST."""
    block = next((size for size in (128, 256, 512, 1024) if length <= size), 2048)
    full = -(-length // block) * block
    return full if full <= PAD_AT_MOST * length else length


def _scan_group(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor) -> Tensor:
    """Scan a group of images and sum over the directions, before the gate: (b, L, E) float32."""
    directions, _, length, channels = u.shape
    inputs = [_grouped(x.to(u.dtype), padded(length)) for x in (u, delta, B, C)]
    wide = [x.float().flatten(0, 1).contiguous() for x in (A, D, delta_bias)]
    out = _scan_kernel(*inputs, *wide)[..., :length].float()
    y = out if directions == 1 else out[:, :channels] + out[:, channels:].flip(-1)
    return y.mT


def _scan_kernel(u: Tensor, delta: Tensor, B: Tensor, C: Tensor, A: Tensor, D: Tensor, delta_bias: Tensor) -> Tensor:
    """u, delta, B and C in the layout of `_grouped` -> (b, S E, L) in their dtype."""
    fwd = importlib.import_module(SCAN).fwd
    out: Tensor = fwd(u.flatten(1, 2), delta.flatten(1, 2), A, B, C, D, None, delta_bias, True)[0]
    return out


def _grouped(x: Tensor, length: int) -> Tensor:
    """(S, b, L, K) in token order -> (b, S, K, length): each direction in its own order, padded with zeros."""
    directions, images, tokens, width = x.shape
    out = x.new_empty(images, directions, width, length)
    out[:, 0, :, :tokens] = x[0].mT
    if directions == 2:
        out[:, 1, :, :tokens] = x[1].flip(1).mT
    out[..., tokens:] = 0
    return out


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """Convolution and SiLU of x (b, E, L) into out (b, E, L), both with E fastest."""
    importlib.import_module(CONV).causal_conv1d_fwd(x, weight, bias, None, None, out, None, True)


_NEEDED: dict[str, str] = {SCAN: "fwd", CONV: "causal_conv1d_fwd"}


def _missing(name: str) -> str | None:
    """Return None if the compiled module `name` has its function, else the reason it does not.

    An undefined symbol raises ImportError or OSError.
    """
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        return f"{error}: {INSTALL}" if error.name == name else f"{name} does not load: {error}"
    except (ImportError, OSError) as error:
        return f"{name} does not load, it was probably compiled against another torch ({error}): {INSTALL}"
    function: Callable[..., Any] | None = getattr(module, _NEEDED[name], None)
    return None if function is not None else f"{name} has no {_NEEDED[name]}, it is of another release: {INSTALL}"
