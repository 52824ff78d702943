"""The loops of a Vim on a CPU as numba kernels: norm, convolution with SiLU, and the selective scan with its gate.

Channels are the vector lanes (`model.jit.simd`), so the channels of each array are a multiple of LANES. The number of
states, the convolution's width and the rank of delta are constants of the compiled code, so that LLVM unrolls loops.

Each docstring lists the fields of the kernel's table (`model.jit.compiler`) in order. Shapes are those of C-contiguous
float32 arrays. A "row" is the stride from one token to the next, a "side" the stride from one direction to the other, 0
where both share one array. Consecutive images are always L rows apart.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from model.backends.cpu.threads import Kernel
from model.jit.compiler import fields, take_job
from model.jit.intrinsics import flush_denormals, restore_denormals
from model.jit.simd import (
    LANES,
    add,
    exp2,
    exp2_of_product,
    fma,
    load,
    load_scalar,
    load_splat,
    mul,
    prefetch,
    reduce_add,
    sigmoid,
    softplus,
    splat,
    store,
    store_bfloat16,
)

_F = np.float32
W = LANES
AHEAD = 4  # tokens to prefetch ahead: the blocks of two tokens are too far apart for the hardware's prefetcher
FAR_AHEAD = 16  # the same, in loops with little work per token
TOKENS = 16  # of one job of the norm and the convolution
CHUNK = 64  # tokens whose step sizes are computed before the recurrence processes them

_trial_fields: Any = fields(1)
_norm_fields: Any = fields(8)
_conv_fields: Any = fields(10)
_scan_fields: Any = fields(23)


@cache
def trial_kernel() -> Kernel:
    """Write 1 to LANES numbers, to test whether compiling and calling kernels works here. Fields: out. Jobs: 1."""

    def trial(table: Any) -> None:
        jobs, out = _trial_fields(table)
        while take_job(table) < jobs:
            store(out, 0, exp2(splat(_F(0))))

    return Kernel(trial)


@cache
def norm_kernel() -> Kernel:
    """residual += hidden, then RMSNorm of the residual.

    Fields: rows, D; hidden (rows, D) or 0; residual (rows, D); weight (D); epsilon (1); out (rows, D); 0, or the
    address of a bfloat16 output that is written instead of out. Jobs: rows / TOKENS, rounded up.
    """

    def norm(table: Any) -> None:
        jobs, rows, width, hidden, residual, weight, epsilon, out, narrow = _norm_fields(table)
        job = take_job(table)
        while job < jobs:
            for row in range(job * TOKENS, min(rows, (job + 1) * TOKENS)):
                squares = splat(_F(0))
                for at in range(row * width, (row + 1) * width, W):
                    x = load(residual, at)
                    if hidden != 0:
                        x = add(x, load(hidden, at))
                        store(residual, at, x)
                    squares = fma(x, x, squares)
                scale = splat(_F(1) / _F(math.sqrt(reduce_add(squares) / _F(width) + load_scalar(epsilon, 0))))
                for d in range(0, width, W):
                    at = row * width + d
                    y = mul(mul(load(residual, at), scale), load(weight, d))
                    if narrow != 0:
                        store_bfloat16(narrow, at, y)
                    else:
                        store(out, at, y)
            job = take_job(table)

    return Kernel(norm)


@cache
def conv_kernel(width: int) -> Kernel:
    """The convolution of `model.conv` with kernel width `width`.

    Fields: S, B, L, E; x (B, L, E) and its row; weight (S, K, E); bias (S, E); out (S, B, L, E); 0, or the address of a
    second output in bfloat16.
    Jobs: B times (L / TOKENS, rounded up).
    """
    K = width

    def conv(table: Any) -> None:
        jobs, sides, images, length, channels, x, row, weight, bias, out, narrow = _conv_fields(table)
        parts = jobs // images
        job = take_job(table)
        while job < jobs:
            image, part = job // parts, job % parts
            for s in range(sides):
                back = 2 * s - 1  # direction of the past in the sequence
                for d in range(0, channels, W):
                    for t in range(part * TOKENS, min(length, (part + 1) * TOKENS)):
                        y = load(bias, s * channels + d)
                        for k in range(K):
                            source = t + back * (K - 1 - k)
                            if 0 <= source < length:
                                at = (image * length + source) * row + d
                                y = fma(load(x, at), load(weight, (s * K + k) * channels + d), y)
                        at = ((s * images + image) * length + t) * channels + d
                        y = mul(y, sigmoid(y))
                        store(out, at, y)
                        if narrow != 0:
                            store_bfloat16(narrow, at, y)
            job = take_job(table)

    return Kernel(conv)


@cache
def scan_kernel(states: int, rank: int) -> Kernel:
    """The scan of `model.scan`, times a constant; delta is either given or a product of low rank.

    Fields: S, L, E; u (S, B, L, E) and its side; delta (S, B, L, E) and its side, or with a rank R > 0 its R factors
    for each token (S, B, L, R), their side and row, and their weight (S, R, E); bias (S, E); A log2(e) (S, N, E);
    B (S, B, L, N), its side and row; C likewise; D (S, E); z (B, L, E) and its row; the constant (1); out (B, L, E);
    0, or the address of a bfloat16 output that receives the result instead; out is then scratch memory.
    Jobs: B E / LANES.
    """
    N, R = states, rank

    def scan(table: Any) -> None:
        (
            jobs, sides, length, channels, us, u_side, deltas, delta_side, delta_row, delta_weight,
            biases, rates, Bs, B_side, B_row, Cs, C_side, C_row, Ds, zs, z_row, constant, out, narrow,
        ) = _scan_fields(table)  # fmt: skip
        before = flush_denormals()
        blocks = channels // W
        scratch = np.empty((2 * N + R + 2 * CHUNK + 1) * W, _F)
        h = -(scratch.ctypes.data // 4) % W  # aligned, so that no vector crosses a cache line
        a = h + N * W
        weight = a + N * W
        steps = weight + R * W
        steps_x = steps + CHUNK * W
        job = take_job(table)
        while job < jobs:
            image, first = job // blocks, (job % blocks) * W
            for s in range(sides):
                forward = 1 - 2 * s
                for n in range(N):
                    store(scratch, h + n * W, splat(_F(0)))
                    store(scratch, a + n * W, load(rates, (s * N + n) * channels + first))
                for r in range(R):
                    store(scratch, weight + r * W, load(delta_weight, (s * R + r) * channels + first))
                skip, bias = load(Ds, s * channels + first), load(biases, s * channels + first)
                start = length - 1 if s == 1 else 0
                for chunk in range(0, length, CHUNK):
                    tokens = min(CHUNK, length - chunk)
                    for i in range(tokens):
                        token = image * length + start + forward * (chunk + i)
                        at = s * u_side + token * channels + first
                        prefetch(us, at + forward * FAR_AHEAD * channels)
                        step = bias
                        if R > 0:
                            factors = s * delta_side + token * delta_row
                            other = splat(_F(0))  # two sums, to shorten the chain of dependent additions
                            for r in range(0, R - 1, 2):
                                step = fma(load_splat(deltas, factors + r), load(scratch, weight + r * W), step)
                                other = fma(
                                    load_splat(deltas, factors + r + 1), load(scratch, weight + (r + 1) * W), other
                                )
                            if R % 2 == 1:
                                last = R - 1
                                step = fma(load_splat(deltas, factors + last), load(scratch, weight + last * W), step)
                            step = add(step, other)
                        else:
                            at_delta = s * delta_side + token * channels + first
                            prefetch(deltas, at_delta + forward * FAR_AHEAD * channels)
                            step = add(load(deltas, at_delta), step)
                        step = softplus(step)
                        store(scratch, steps + i * W, step)
                        store(scratch, steps_x + i * W, mul(step, load(us, at)))
                    for i in range(tokens):
                        token = image * length + start + forward * (chunk + i)
                        y = mul(load(us, s * u_side + token * channels + first), skip)
                        step, step_x = load(scratch, steps + i * W), load(scratch, steps_x + i * W)
                        for n in range(N):
                            decay = exp2_of_product(step, load(scratch, a + n * W))
                            enters = mul(step_x, load_splat(Bs, s * B_side + token * B_row + n))
                            state = fma(load(scratch, h + n * W), decay, enters)
                            store(scratch, h + n * W, state)
                            y = fma(state, load_splat(Cs, s * C_side + token * C_row + n), y)
                        at = token * channels + first
                        prefetch(out, at + forward * AHEAD * channels)
                        prefetch(us, s * u_side + at + forward * CHUNK * channels)
                        if s == sides - 1:
                            prefetch(zs, (token + forward * AHEAD) * z_row + first)
                        if s > 0:
                            y = add(y, load(out, at))
                        if s == sides - 1:
                            gate = mul(load(zs, token * z_row + first), load_splat(constant, 0))
                            y = mul(mul(y, gate), sigmoid(load(zs, token * z_row + first)))
                        if narrow != 0 and s == sides - 1:
                            store_bfloat16(narrow, at, y)
                        else:
                            store(out, at, y)
            job = take_job(table)
        restore_denormals(before)

    return Kernel(scan)
