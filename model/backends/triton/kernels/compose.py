"""The scan and the convolution as separate kernels, for configurations that the fused layers do not support.

The scan supports any number of states. Shapes are those of `model.scan` and `model.conv`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from model.backends.triton.kernels.common import COUNTS, LOG2E, convolved, softplus
from model.errors import ScanError

GROUP = 16  # states in registers at once
CHANNELS = 32
CONV_TOKENS, CONV_CHANNELS = 16, 64
MAX_KERNEL_WIDTH = 4
WIDE_FROM = 1 << 31


def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor) -> Tensor:
    """The scan of `model.scan`, in float32. Raises ScanError for float64."""
    if u.dtype == torch.float64:
        raise ScanError("scan 'triton' computes in float32; for float64 choose 'torch'")
    directions, images, length, channels = u.shape
    states = A.shape[-1]
    y = torch.empty_like(u, dtype=torch.float32, memory_format=torch.contiguous_format)
    rates = (A * LOG2E.value).transpose(1, 2).contiguous()
    given = [x.contiguous() for x in (u, delta, rates, B, C, D, delta_bias)]
    for group in range(0, states, GROUP):
        scan_kernel[(triton.cdiv(channels, CHANNELS) * directions * images,)](
            *given,
            y,
            images,
            length,
            channels,
            states,
            FIRST=group,
            CHANNELS=CHANNELS,
            WIDE=y.numel() >= WIDE_FROM,
            num_warps=1,
        )
    return (y.sum(0) * F.silu(z.float())).to(u.dtype)


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution of `model.conv`, in float32; the kernel width is at most 4."""
    images, length, channels = x.shape
    row = x.stride(1) if length > 1 else x.stride(0)  # the stride of a single token may be anything
    if x.stride(2) != 1 or (images > 1 and x.stride(0) != length * row):
        x, row = x.contiguous(), channels
    directions, _, kernel_width = weight.shape
    padded = F.pad(weight.float(), (MAX_KERNEL_WIDTH - kernel_width, 0)).transpose(1, 2)
    biases = padded.new_zeros(directions, channels) if bias is None else bias.float()
    out = x.new_empty(directions, images, length, channels)
    rows = images * length
    conv_kernel[(triton.cdiv(rows, CONV_TOKENS), triton.cdiv(channels, CONV_CHANNELS), directions)](
        x,
        row,
        torch.cat((padded, biases[:, None]), dim=1).contiguous(),
        out,
        rows,
        length,
        channels,
        TOKENS=CONV_TOKENS,
        CHANNELS=CONV_CHANNELS,
        WIDE=max(out.numel(), rows * row) >= WIDE_FROM,
        num_warps=4,
    )
    return out


@triton.jit(do_not_specialize=COUNTS)
def scan_kernel(
    U: tl.tensor,
    DELTA: tl.tensor,
    RATES: tl.tensor,
    B: tl.tensor,
    C: tl.tensor,
    D: tl.tensor,
    BIAS: tl.tensor,
    Y: tl.tensor,
    images: tl.tensor,
    L: tl.tensor,
    E: tl.tensor,
    N: tl.tensor,
    FIRST: tl.constexpr,
    CHANNELS: tl.constexpr,
    WIDE: tl.constexpr,
) -> None:
    """Sixteen states from FIRST on, of 32 channels of one image in one direction; later groups of states add to Y."""
    blocks = tl.cdiv(E, CHANNELS)
    track = tl.program_id(0) // blocks
    d = (tl.program_id(0) % blocks) * CHANNELS + tl.arange(0, CHANNELS)
    live = d < E
    s = track // images
    sign = 1 - 2 * s
    bias = tl.load(BIAS + s * E + d, mask=live, other=0.0)
    skip = tl.load(D + s * E + d, mask=live, other=0.0)
    rates = ()
    h = ()
    for n in tl.static_range(16):
        rate = tl.load(RATES + (s * N + FIRST + n) * E + d, mask=live & (FIRST + n < N), other=0.0)
        rates = rates + (rate,)
        h = h + (tl.zeros((CHANNELS,), dtype=tl.float32),)
    origin = track * L + s * (L - 1)
    if WIDE:
        origin = origin.to(tl.int64)
    for k in range(L):
        row = origin + sign * k
        place = row * E + d
        u = tl.load(U + place, mask=live, other=0.0).to(tl.float32)
        dt = softplus(tl.load(DELTA + place, mask=live, other=0.0).to(tl.float32) + bias, False)
        dt_u = dt * u
        y = skip * u if FIRST == 0 else tl.load(Y + place, mask=live, other=0.0)
        moved = ()
        for n in tl.static_range(16):
            b = tl.load(B + row * N + FIRST + n, mask=FIRST + n < N, other=0.0).to(tl.float32)
            c = tl.load(C + row * N + FIRST + n, mask=FIRST + n < N, other=0.0).to(tl.float32)
            state = tl.exp2(dt * rates[n]) * h[n] + dt_u * b
            y += state * c
            moved = moved + (state,)
        h = moved
        tl.store(Y + place, y, mask=live)


@triton.jit(do_not_specialize=COUNTS)
def conv_kernel(
    X: tl.tensor,
    stride: tl.tensor,
    W: tl.tensor,
    OUT: tl.tensor,
    M: tl.tensor,
    L: tl.tensor,
    E: tl.tensor,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
    WIDE: tl.constexpr,
) -> None:
    """TOKENS rows and CHANNELS channels of one direction."""
    s = tl.program_id(2)
    m = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    e = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    live = (m < M)[:, None] & (e < E)[None, :]
    token = m % L
    step = tl.where(s == 0, token, L - 1 - token)
    if WIDE:
        m = m.to(tl.int64)
    u = convolved(X, stride, W + s * 5 * E, E, m, e, step, 1 - 2 * s, live, False)
    tl.store(OUT + (s * M + m)[:, None] * E + e[None, :], u.to(OUT.dtype.element_ty), mask=live)
