"""Stand-ins for the compiled modules of mamba-ssm and causal-conv1d: same signatures, same requirements, plain torch.

Each requirement is one that the C++ code checks or relies on without a check; see
csrc/selective_scan/selective_scan.cpp and selective_scan_fwd_kernel.cuh of mamba-ssm 2.3.2.post1,
csrc/causal_conv1d.cpp of 1.7.0.
"""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
BLOCKS = (128, 256, 512, 1024)
VECTOR_BYTES = 16


class Calls:
    """The calls of the stand-ins: the lengths and images of the scans, and the number of convolutions."""

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self.images: list[int] = []
        self.convolutions = 0


def install(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Make both modules importable until the test ends."""
    calls = Calls()
    scan, conv = ModuleType("selective_scan_cuda"), ModuleType("causal_conv1d_cuda")

    def fwd(*arguments: object) -> list[Tensor]:
        u = arguments[0]
        assert isinstance(u, Tensor)
        calls.lengths.append(u.shape[2])
        calls.images.append(u.shape[0])
        return selective_scan_fwd(*arguments)  # type: ignore[arg-type]

    def causal_conv1d_fwd(*arguments: object) -> None:
        calls.convolutions += 1
        return causal_conv(*arguments)  # type: ignore[arg-type]

    scan.fwd = fwd  # type: ignore[attr-defined]
    conv.causal_conv1d_fwd = causal_conv1d_fwd  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", scan)
    monkeypatch.setitem(sys.modules, "causal_conv1d_cuda", conv)
    return calls


def selective_scan_fwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> list[Tensor]:
    """`selective_scan_cuda.fwd`: [out, x] or, with z, [out, x, out_z]; x, the chunk states, is left as it comes."""
    images, channels, length = u.shape
    groups = _check_scan(u, delta, A, B, C, z)
    for vector in (D, delta_bias):
        assert vector is None or (torch.float32, (channels,), 1) == (vector.dtype, vector.shape, vector.stride(0))
    dt = delta.float() + (0 if delta_bias is None else delta_bias[:, None])
    dt = torch.where(dt <= 20, torch.log1p(torch.exp(dt.clamp(max=20))), dt) if delta_softplus else dt
    grouped_B, grouped_C = (x.float().repeat_interleave(channels // groups, dim=1) for x in (B, C))
    state, out = torch.zeros(images, channels, A.shape[1]), torch.empty_like(delta)
    for t in range(length):
        state = torch.exp(dt[:, :, t, None] * A) * state + (dt * u)[:, :, t, None] * grouped_B[..., t]
        y = (state * grouped_C[..., t]).sum(-1)
        out[:, :, t] = (y if D is None else y + D * u[:, :, t]).to(out.dtype)
    x = torch.empty(images, channels, -(-length // 2048), 2 * A.shape[1])
    return [out, x] if z is None else [out, x, (out.float() * F.silu(z.float())).to(z.dtype)]


def _check_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, z: Tensor | None) -> int:
    """Check the requirements on shapes, dtypes and strides; returns the number of groups."""
    images, channels, length = u.shape
    groups, states = B.shape[1], A.shape[1]
    assert u.dtype in KERNEL_DTYPES
    assert torch.float32 == A.dtype
    assert (channels, states) == A.shape
    assert states <= 256
    assert channels % groups == 0
    assert u.shape == delta.shape
    assert (images, groups, states, length) == B.shape == C.shape
    for tensor in (u, delta, B, C, *(() if z is None else (z,))):
        assert u.dtype == tensor.dtype
        assert tensor.stride(-1) == 1 or length == 1
        assert _reach(tensor) < 2**32  # strides are multiplied in 32 bits, unchecked
        if length % _block(length) == 0:  # loads of 16 bytes, unchecked
            rows = [tensor.stride(i) for i in range(tensor.ndim - 1) if tensor.shape[i] > 1]
            assert all(stride * tensor.element_size() % VECTOR_BYTES == 0 for stride in rows)
            assert tensor.data_ptr() % VECTOR_BYTES == 0
    return groups


def _block(length: int) -> int:
    return next((block for block in BLOCKS if length <= block), 2048)


def _reach(tensor: Tensor) -> int:
    return sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    out: Tensor,
    final_states_out: Tensor | None,
    silu_activation: bool,
) -> None:
    """`causal_conv1d_cuda.causal_conv1d_fwd`: writes (B, E, L) into `out`."""
    _, channels, length = x.shape
    width = weight.shape[1]
    assert (None, None, None) == (seq_idx, initial_states, final_states_out)
    assert x.dtype in KERNEL_DTYPES
    assert (x.shape, x.dtype) == (out.shape, out.dtype)  # unchecked
    assert (channels, width) == weight.shape
    assert 2 <= width <= 4
    assert 1 in (x.stride(1), x.stride(2))
    if x.stride(1) == 1 and x.stride(2) > 1:
        assert (0, 0, 0) == (channels % 8, x.stride(0) % 8, x.stride(2) % 8)
        assert x.stride() == out.stride()  # its stores are vectors along the channels, unchecked
    if bias is not None:
        assert (weight.dtype, (channels,), 1) == (bias.dtype, bias.shape, bias.stride(0))
    padded = F.pad(x.float(), (width - 1, 0))
    taps = sum(weight.float()[:, k, None] * padded[..., k : k + length] for k in range(width))
    y = taps if bias is None else taps + bias.float()[:, None]
    assert isinstance(y, Tensor)
    out.copy_(F.silu(y) if silu_activation else y)
