"""Functions that several kernels use: activations in powers of two, which the hardware computes, and the convolution.

P holds a layer's float32 parameters, (S, 23, E): 16 rows of A log2(e), 4 convolution weights, convolution bias, dt
bias, D.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Arguments whose value Triton must not compile for. E, the width of a row, is not among them: its divisibility by 16
# allows wide loads.
COUNTS = ("images", "L", "M", "chunk", "chunks")

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
SERIES_BELOW = tl.constexpr(0.03)
LINEAR_ABOVE = tl.constexpr(20.0)  # torch's threshold

# Instructions of the hardware where Triton has only exact functions.
RECIPROCAL = tl.constexpr("rcp.approx.ftz.f32 $0, $1;")
LOGARITHM = tl.constexpr("lg2.approx.ftz.f32 $0, $1;")
PREFETCH = tl.constexpr("prefetch.global.L1 [$1]; mov.b32 $0, 0;")
FOUR = tl.constexpr("ld.global.nc.v4.f32 {$0, $1, $2, $3}, [$4];")

CONV_WEIGHTS = tl.constexpr(16)  # rows of P
CONV_BIAS = tl.constexpr(20)
DT_BIAS = tl.constexpr(21)
SKIP = tl.constexpr(22)
ROWS = tl.constexpr(23)


@triton.jit
def silu(x: tl.tensor, PTX: tl.constexpr) -> tl.tensor:
    """X / (1 + exp(-x)). PTX: with the hardware's reciprocal, which is off by one in the last place."""
    below = 1.0 + tl.exp2(-x * LOG2E)
    if PTX:
        return x * tl.inline_asm_elementwise(RECIPROCAL, "=f,f", [below], dtype=tl.float32, is_pure=True, pack=1)
    return x * (1.0 / below)


@triton.jit
def softplus(x: tl.tensor, PTX: tl.constexpr) -> tl.tensor:
    """log(1 + exp(x)); as a series where exp(x) is small, because 1 + exp(x) would lose its digits.

    PTX: with the hardware's logarithm. Triton's is a polynomial of 20 instructions.
    """
    e = tl.exp2(tl.minimum(x, LINEAR_ABOVE) * LOG2E)
    series = e * (1.0 + e * (-0.5 + e * (1.0 / 3.0 - 0.25 * e)))
    if PTX:
        log2 = tl.inline_asm_elementwise(LOGARITHM, "=f,f", [1.0 + e], dtype=tl.float32, is_pure=True, pack=1)
        return tl.maximum(x, tl.where(e < SERIES_BELOW, series, LN2 * log2))
    return tl.where(x > LINEAR_ABOVE, x, tl.where(e < SERIES_BELOW, series, LN2 * tl.log2(1.0 + e)))


@triton.jit
def two_pairs(PAIRS: tl.tensor, PTX: tl.constexpr) -> tl.tensor:
    """Load (b, c, b, c), float32, of two states from a pointer to 64-bit integers; PTX: as one load of 128 bits."""
    if PTX:
        return tl.inline_asm_elementwise(
            FOUR, "=f,=f,=f,=f,l", [PAIRS], dtype=(tl.float32, tl.float32, tl.float32, tl.float32), is_pure=True, pack=1
        )
    first = tl.load(PAIRS)
    second = tl.load(PAIRS + 1)
    return (
        first.to(tl.int32).to(tl.float32, bitcast=True),
        (first >> 32).to(tl.int32).to(tl.float32, bitcast=True),
        second.to(tl.int32).to(tl.float32, bitcast=True),
        (second >> 32).to(tl.int32).to(tl.float32, bitcast=True),
    )


@triton.jit
def to_l1(places: tl.tensor, PTX: tl.constexpr) -> None:
    """Prefetch these addresses into the first-level cache. It is only a hint, so nothing is done without PTX."""
    if PTX:
        tl.inline_asm_elementwise(PREFETCH, "=r,l", [places], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def convolved(
    X: tl.tensor,
    stride: tl.tensor,
    W: tl.tensor,
    E: tl.tensor,
    m: tl.tensor,
    e: tl.tensor,
    step: tl.tensor,
    sign: tl.tensor,
    live: tl.tensor,
    PTX: tl.constexpr,
) -> tl.tensor:
    """SiLU of the convolution at rows m and channels e of X (rows, stride); W is (5, E): four weights and the bias.

    `step` counts the tokens of an image in the direction's order; `sign` is 1 forward and -1 backward.
    """
    total = tl.zeros(live.shape, dtype=tl.float32) + tl.load(W + 4 * E + e, mask=e < E, other=0.0)[None, :]
    for back in tl.static_range(4):
        tap = tl.load(W + (3 - back) * E + e, mask=e < E, other=0.0)
        place = X + (m - sign * back)[:, None] * stride + e[None, :]
        x = tl.load(place, mask=live & (step >= back)[:, None], other=0.0)
        total += tap[None, :] * x.to(tl.float32)
    return silu(total, PTX)
