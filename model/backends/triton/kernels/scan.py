"""The middle of a layer as one kernel: dt_proj, softplus, convolution, SiLU, both scans and D u. No tensor is flipped.

One program is one warp: 32 channels of one image in one direction, over all tokens or one chunk of them. Sixteen
one-dimensional state vectors stay in registers; a two-dimensional tile would replicate dt and need shuffles for y.
dt of the next 16 tokens is one matrix product, stored in scratch memory of this program, which stays in the cache.

    XZ     (B, L, 2E)               in_proj's output: x, and the gate z, which is not read here
    DBC    (S, B, L, 32 + R')       float32: B and C interleaved, then dt_proj's input, filled with zeros to R'
    PAIRS  the same memory as 64-bit integers: (B_n, C_n) is one load
    WDT    (S, E, R')               dt_proj.weight, filled with zeros to R'
    P      (S, 23, E)               float32, see `model.backends.triton.kernels.common`
    Y      (S, B, L, E)             out: <h, C> + D u, before the gate
    DT     (programs, 16, 32)       scratch, float32
    STATE  (S, B, chunks, 16, E)    float32: states at the chunks' ends, each started from zero
    SUMS   (S, B, chunks, E)        float32: sum of dt over a chunk

Equations 2a and 2b of Mamba (arXiv 2312.00752) with exp2(dt A log2 e); the wiring is hustvl/Vim's mamba_simple.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from model.backends.triton.kernels.common import (
    CONV_BIAS,
    CONV_WEIGHTS,
    COUNTS,
    DT_BIAS,
    ROWS,
    SKIP,
    silu,
    softplus,
    to_l1,
    two_pairs,
)


@triton.jit(do_not_specialize=COUNTS)
def scan_tokens(
    XZ: tl.tensor,
    DBC: tl.tensor,
    PAIRS: tl.tensor,
    WDT: tl.tensor,
    P: tl.tensor,
    Y: tl.tensor,
    DT: tl.tensor,
    STATE: tl.tensor,
    SUMS: tl.tensor,
    images: tl.tensor,
    L: tl.tensor,
    E: tl.tensor,
    chunk: tl.tensor,
    chunks: tl.tensor,
    RANK: tl.constexpr,
    TILE: tl.constexpr,
    CHANNELS: tl.constexpr,
    ENDS: tl.constexpr,
    CARRY: tl.constexpr,
    WIDE: tl.constexpr,
    PTX: tl.constexpr,
) -> None:
    """ENDS: start from zero, write only STATE and SUMS. CARRY: start from those of the chunks before.

    WIDE: 64-bit offsets. PTX: approximations of the hardware and wide loads, as inline assembly.
    """
    pid = tl.program_id(0)
    blocks = tl.cdiv(E, CHANNELS)
    piece = pid // blocks
    lane = tl.arange(0, CHANNELS)
    d = (pid % blocks) * CHANNELS + lane
    live = d < E
    track = piece // chunks
    s = track // images
    sign = 1 - 2 * s
    params = P + s * ROWS * E + d
    w0 = tl.load(params + CONV_WEIGHTS * E, mask=live, other=0.0)
    w1 = tl.load(params + (CONV_WEIGHTS + 1) * E, mask=live, other=0.0)
    w2 = tl.load(params + (CONV_WEIGHTS + 2) * E, mask=live, other=0.0)
    w3 = tl.load(params + (CONV_WEIGHTS + 3) * E, mask=live, other=0.0)
    conv_bias = tl.load(params + CONV_BIAS * E, mask=live, other=0.0)
    dt_bias = tl.load(params + DT_BIAS * E, mask=live, other=0.0)
    skip = tl.load(params + SKIP * E, mask=live, other=0.0)
    rank = tl.arange(0, RANK)
    w_dt = tl.load(WDT + (s * E + d)[None, :] * RANK + rank[:, None], mask=live[None, :], other=0.0)
    state_at = STATE + piece.to(tl.int64) * 16 * E + d
    rates = ()
    h = ()
    for n in tl.static_range(16):
        rates = rates + (tl.load(params + n * E, mask=live, other=0.0),)
        h = h + (tl.zeros((CHANNELS,), dtype=tl.float32),)
    if CARRY:
        # The product of the decays over a chunk is exp(A sum of dt), so one number per channel is enough.
        for back in range(piece % chunks, 0, -1):
            earlier = (piece - back).to(tl.int64)
            dt_sum = tl.load(SUMS + earlier * E + d, mask=live, other=0.0)
            carried = ()
            for n in tl.static_range(16):
                end = tl.load(STATE + (earlier * 16 + n) * E + d, mask=live, other=0.0)
                carried = carried + (tl.exp2(rates[n] * dt_sum) * h[n] + end,)
            h = carried
    first = (piece % chunks) * chunk
    last = tl.minimum(first + chunk, L)
    # The row of step 0 in Y and DBC: the direction's first token. Step k is `sign * k` rows further.
    out = track * L + s * (L - 1)
    skipped = s * images * L
    if WIDE:
        out = out.to(tl.int64)
        skipped = skipped.to(tl.int64)
    # X has the rows of one direction, so that both begin at `out`. Lanes beyond E read the last channel.
    x_at = XZ - skipped * 2 * E + tl.minimum(d, E - 1)
    row = out + sign * first
    x0 = tl.load(x_at + (row - sign * 3) * 2 * E, mask=live & (first >= 3), other=0.0).to(tl.float32)
    x1 = tl.load(x_at + (row - sign * 2) * 2 * E, mask=live & (first >= 2), other=0.0).to(tl.float32)
    x2 = tl.load(x_at + (row - sign) * 2 * E, mask=live & (first >= 1), other=0.0).to(tl.float32)
    following = tl.load(x_at + row * 2 * E)
    bc = ()
    for n in tl.static_range(8):
        bc = bc + (two_pairs(PAIRS + row * (16 + RANK // 2) + 2 * n, PTX),)
    total = tl.zeros((CHANNELS,), dtype=tl.float32)
    step = tl.arange(0, TILE)
    SECTORS: tl.constexpr = 8 if RANK <= 32 else 16
    # Where the 32-byte sectors of a row of DBC begin; the last one repeatedly, because 32 + R' is not a power of two.
    sector = tl.minimum(8 * tl.arange(0, SECTORS), 24 + RANK)
    scratch = DT + pid * TILE * CHANNELS + lane
    for start in range(first, last, TILE):
        rows = (out + sign * (start + step)) * (32 + RANK)
        low = tl.load(DBC + rows[:, None] + 32 + rank[None, :], mask=(start + step < last)[:, None], other=0.0)
        raw = tl.dot(low.to(w_dt.dtype), w_dt, input_precision="ieee") + dt_bias[None, :]
        later = out + sign * tl.minimum(start + TILE + step, last - 1)
        to_l1(DBC + later[:, None] * (32 + RANK) + sector[None, :], PTX)
        tl.debug_barrier()  # every thread has read the tile before
        tl.store(scratch[None, :] + step[:, None] * CHANNELS, softplus(raw, PTX))
        tl.debug_barrier()
        dt_following = tl.load(scratch)
        for i in range(tl.minimum(TILE, last - start)):
            # The inputs of the next token are loaded one step ahead; after the last token, its own inputs are loaded
            # again.
            upcoming = row + tl.where(start + i + 1 < last, sign, 0)
            dt = dt_following
            dt_following = tl.load(scratch + tl.minimum(i + 1, TILE - 1) * CHANNELS)
            x3 = following.to(tl.float32)
            following = tl.load(x_at + upcoming * 2 * E)
            u = silu(conv_bias + w0 * x0 + w1 * x1 + w2 * x2 + w3 * x3, PTX)
            x0 = x1
            x1 = x2
            x2 = x3
            dt_u = dt * u
            y = skip * u
            moved = ()
            loaded = ()
            for n in tl.static_range(8):
                for half in tl.static_range(2):
                    state = tl.exp2(dt * rates[2 * n + half]) * h[2 * n + half] + dt_u * bc[n][2 * half]
                    y += state * bc[n][2 * half + 1]
                    moved = moved + (state,)
                loaded = loaded + (two_pairs(PAIRS + upcoming * (16 + RANK // 2) + 2 * n, PTX),)
            h = moved
            bc = loaded
            if ENDS:
                total += dt
            else:
                tl.store(Y + row * E + d, y.to(Y.dtype.element_ty), mask=live)
            row = upcoming
    if ENDS:
        for n in tl.static_range(16):
            tl.store(state_at + n * E, h[n], mask=live)
        tl.store(SUMS + piece.to(tl.int64) * E + d, total, mask=live)
