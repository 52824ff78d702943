"""The first and the last kernel of a layer: convolution, SiLU and x_proj; then gate, out_proj, residual and RMSNorm.

    XZ        (M, 2E)             in_proj's output x and z; M = B L rows
    WX        (S, 32 + R', E)     x_proj.weight: rows of B and C interleaved, then those of dt, zeros to R'
    P         (S, 23, E)          float32, see `model.backends.triton.kernels.common`
    DBC       (S, M, 32 + R')     out, float32
    Y         (S, M, E)           the scan's output
    WO        (D, E)              out_proj.weight, halved if the configuration says so
    RESIDUAL  (M, D)              float32, in and out
    NORM      (D)                 float32, the next norm's weight
    NORMED    (M, D)              out

Reference: mamba_simple.py, Mamba.forward, and models_mamba.py, Block.forward. No tensor is flipped.
"""

from __future__ import annotations

import triton
import triton.language as tl

from model.backends.triton.kernels.common import CONV_WEIGHTS, COUNTS, ROWS, convolved, silu


@triton.jit(do_not_specialize=COUNTS)
def conv_project(
    XZ: tl.tensor,
    WX: tl.tensor,
    P: tl.tensor,
    DBC: tl.tensor,
    M: tl.tensor,
    L: tl.tensor,
    E: tl.tensor,
    RANK: tl.constexpr,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
    WIDE: tl.constexpr,
    PTX: tl.constexpr,
) -> None:
    """One program: TOKENS rows of one direction, all of x_proj's outputs."""
    s = tl.program_id(1)
    sign = 1 - 2 * s
    m = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    inside = m < M
    token = m % L
    step = tl.where(s == 0, token, L - 1 - token)
    if WIDE:
        m = m.to(tl.int64)
    pairs = tl.arange(0, 32)
    rank = tl.arange(0, RANK)
    weights = WX + s * (32 + RANK) * E
    bc = tl.zeros((TOKENS, 32), dtype=tl.float32)
    low = tl.zeros((TOKENS, RANK), dtype=tl.float32)
    for start in range(0, E, CHANNELS):
        e = start + tl.arange(0, CHANNELS)
        live = e < E
        seen = inside[:, None] & live[None, :]
        u = convolved(XZ, 2 * E, P + (s * ROWS + CONV_WEIGHTS) * E, E, m, e, step, sign, seen, PTX).to(
            XZ.dtype.element_ty
        )
        w_bc = tl.load(weights + pairs[None, :] * E + e[:, None], mask=live[:, None], other=0.0)
        w_low = tl.load(weights + (32 + rank)[None, :] * E + e[:, None], mask=live[:, None], other=0.0)
        bc = tl.dot(u, w_bc, bc, input_precision="ieee")
        low = tl.dot(u, w_low, low, input_precision="ieee")
    rows = DBC + (s * M + m)[:, None] * (32 + RANK)
    tl.store(rows + pairs[None, :], bc, mask=inside[:, None])
    tl.store(rows + 32 + rank[None, :], low, mask=inside[:, None])


@triton.jit
def gated_sum(
    Y: tl.tensor,
    XZ: tl.tensor,
    M: tl.tensor,
    E: tl.tensor,
    m: tl.tensor,
    e: tl.tensor,
    live: tl.tensor,
    PTX: tl.constexpr,
) -> tl.tensor:
    """Both directions' sum times SiLU of the gate, at rows m and channels e, float32."""
    forward = tl.load(Y + m[:, None] * E + e[None, :], mask=live, other=0.0).to(tl.float32)
    backward = tl.load(Y + (M + m)[:, None] * E + e[None, :], mask=live, other=0.0).to(tl.float32)
    z = tl.load(XZ + m[:, None] * 2 * E + (E + e)[None, :], mask=live, other=0.0).to(tl.float32)
    return (forward + backward) * silu(z, PTX)


@triton.jit(do_not_specialize=COUNTS)
def out_project_norm(
    Y: tl.tensor,
    XZ: tl.tensor,
    WO: tl.tensor,
    RESIDUAL: tl.tensor,
    NORM: tl.tensor,
    NORMED: tl.tensor,
    M: tl.tensor,
    E: tl.tensor,
    epsilon: tl.tensor,
    PARTS: tl.constexpr,
    PART: tl.constexpr,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
    WIDE: tl.constexpr,
    PTX: tl.constexpr,
) -> None:
    """One program: TOKENS whole rows of D = PARTS * PART outputs (192, 384 and 768 are not powers of two)."""
    m = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    inside = m < M
    if WIDE:
        m = m.to(tl.int64)
    n = tl.arange(0, PART)
    sums = ()
    for _ in tl.static_range(PARTS):
        sums = sums + (tl.zeros((TOKENS, PART), dtype=tl.float32),)
    for start in range(0, E, CHANNELS):
        e = start + tl.arange(0, CHANNELS)
        live = inside[:, None] & (e < E)[None, :]
        gated = gated_sum(Y, XZ, M, E, m, e, live, PTX).to(WO.dtype.element_ty)
        added = ()
        for p in tl.static_range(PARTS):
            w = tl.load(WO + (p * PART + n)[None, :] * E + e[:, None], mask=(e < E)[:, None], other=0.0)
            added = added + (tl.dot(gated, w, sums[p], input_precision="ieee"),)
        sums = added
    width = PARTS * PART
    squares = tl.zeros((TOKENS,), dtype=tl.float32)
    rows = ()
    for p in tl.static_range(PARTS):
        place = RESIDUAL + m[:, None] * width + p * PART + n[None, :]
        row = tl.load(place, mask=inside[:, None], other=0.0) + sums[p]
        tl.store(place, row, mask=inside[:, None])
        squares += tl.sum(row * row, axis=1)
        rows = rows + (row,)
    scale = 1.0 / tl.sqrt(squares / width + epsilon)
    for p in tl.static_range(PARTS):
        normed = rows[p] * scale[:, None] * tl.load(NORM + p * PART + n)[None, :]
        place = NORMED + m[:, None] * width + p * PART + n[None, :]
        tl.store(place, normed.to(NORMED.dtype.element_ty), mask=inside[:, None])


@triton.jit(do_not_specialize=COUNTS)
def gate(
    Y: tl.tensor,
    XZ: tl.tensor,
    GATED: tl.tensor,
    M: tl.tensor,
    E: tl.tensor,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
    WIDE: tl.constexpr,
    PTX: tl.constexpr,
) -> None:
    """Both directions' sum times SiLU of the gate: GATED (M, E), where out_proj is a product of cuBLAS."""
    m = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    e = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    live = (m < M)[:, None] & (e < E)[None, :]
    if WIDE:
        m = m.to(tl.int64)
    gated = gated_sum(Y, XZ, M, E, m, e, live, PTX)
    tl.store(GATED + m[:, None] * E + e[None, :], gated.to(GATED.dtype.element_ty), mask=live)


@triton.jit(do_not_specialize=COUNTS)
def add_norm(
    ADDED: tl.tensor,
    RESIDUAL: tl.tensor,
    NORM: tl.tensor,
    NORMED: tl.tensor,
    M: tl.tensor,
    D: tl.tensor,
    epsilon: tl.tensor,
    ROWS_EACH: tl.constexpr,
    WIDTH: tl.constexpr,
    FIRST: tl.constexpr,
    WIDE: tl.constexpr,
) -> None:
    """Add out_proj's output (M, D) to RESIDUAL; NORMED is its RMSNorm. WIDTH >= D is a power of two.

    FIRST: before the first layer, where RESIDUAL has no value yet and ADDED holds the tokens.
    """
    m = tl.program_id(0) * ROWS_EACH + tl.arange(0, ROWS_EACH)
    if WIDE:
        m = m.to(tl.int64)
    n = tl.arange(0, WIDTH)
    live = (m < M)[:, None] & (n < D)[None, :]
    place = m[:, None] * D + n[None, :]
    row = tl.load(ADDED + place, mask=live, other=0.0).to(tl.float32)
    if not FIRST:
        row += tl.load(RESIDUAL + place, mask=live, other=0.0)
    tl.store(RESIDUAL + place, row, mask=live)
    scale = 1.0 / tl.sqrt(tl.sum(row * row, axis=1) / D + epsilon)
    weight = tl.load(NORM + n, mask=n < D, other=0.0)
    tl.store(NORMED + place, (row * scale[:, None] * weight[None, :]).to(NORMED.dtype.element_ty), mask=live)
