"""The selective scan for training on a CPU: numba kernels for the forward pass and its gradient.

The arguments are those of `model.scan`: everything in token order, direction 0 from the first token to the last,
direction 1 from the last to the first; the result is gated by silu(z). The backward pass stores no states: it computes
them again, a block of channels at a time, in a buffer that fits the L2 cache. Channels are the vector lanes
(`model.jit.simd`); A is transposed once so that they are contiguous. The kernels use one core: training runs in several
processes that synchronise every few steps, not in every operation, and so is less disturbed by other work on the cores.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

from model.jit.simd import (
    LANES,
    add,
    exp2_of_product,
    fma,
    load,
    mul,
    prefetch,
    reduce_add,
    sigmoid,
    softplus,
    splat,
    store,
    sub,
)

_F = np.float32
_LOG2E = 1.4426950408889634
_LN2 = _F(0.6931471805599453)


def scan_forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the scan's sum over the directions, before and after the gate: (B, L, E) each.

    All tensors are contiguous float32. Raises ValueError if the channels (last axis of u) are not a multiple of 16.
    """
    if u.shape[-1] % LANES:
        raise ValueError(f"the training scan needs a multiple of {LANES} channels, got {u.shape[-1]}")
    summed, gated = torch.empty_like(z), torch.empty_like(z)
    arrays = (t.numpy() for t in (u, delta, _exponents(A), B, C, D, z, delta_bias, summed, gated))
    _kernels(A.shape[2]).forward(*arrays)
    return summed, gated


def scan_backward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor,
    summed: Tensor, grad: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Return the gradients of the eight inputs, in their order, given that of the gated sum."""
    directions, batch, _, channels = u.shape
    du, d_delta, dB, dC, dz = (torch.empty_like(x) for x in (u, delta, B, C, z))
    dA = u.new_empty(batch, directions, A.shape[2], channels)
    dD, d_bias = (u.new_empty(batch, directions, channels) for _ in range(2))
    inputs = (t.numpy() for t in (u, delta, _exponents(A), B, C, D, z, delta_bias, summed, grad.contiguous()))
    _kernels(A.shape[2]).backward(*inputs, *(t.numpy() for t in (du, d_delta, dA, dB, dC, dD, dz, d_bias)))
    return du, d_delta, dA.sum(0).transpose(1, 2), dB, dC, dD.sum(0), dz, d_bias.sum(0)


def _exponents(A: Tensor) -> Tensor:
    """(S, E, N) -> (S, N, E), multiplied by log2(e)."""
    return (A.transpose(1, 2) * _LOG2E).contiguous()


class _Kernels(NamedTuple):
    forward: Any
    backward: Any


@lru_cache
def _kernels(states: int) -> _Kernels:
    """Compile both kernels for this number of states; a constant lets LLVM unroll the loops."""
    N, W, AHEAD = states, LANES, 4

    @njit(nogil=True, error_model="numpy")
    def forward(
        u: Any, delta: Any, A2: Any, B: Any, C: Any, D: Any, z: Any, bias: Any, summed: Any, gated: Any
    ) -> None:
        directions, batch, length, channels = u.shape
        blocks = channels // W
        for job in range(batch * blocks):
            b, d0 = job // blocks, (job % blocks) * W
            h, a = np.empty(N * W, _F), np.empty(N * W, _F)
            for s in range(directions):
                ahead = (1 - 2 * s) * AHEAD * channels
                for n in range(N):
                    store(h, n * W, splat(_F(0)))
                    store(a, n * W, load(A2, (s * N + n) * channels + d0))
                skip, shift = load(D, s * channels + d0), load(bias, s * channels + d0)
                for k in range(length):
                    t = length - 1 - k if s == 1 else k
                    row = (s * batch + b) * length + t
                    prefetch(u, row * channels + d0 + ahead)
                    prefetch(delta, row * channels + d0 + ahead)
                    x = load(u, row * channels + d0)
                    step = softplus(add(load(delta, row * channels + d0), shift))
                    dx = mul(step, x)
                    acc = mul(x, skip)
                    for n in range(N):
                        decay = exp2_of_product(step, load(a, n * W))
                        new = fma(load(h, n * W), decay, mul(dx, splat(B[s, b, t, n])))
                        store(h, n * W, new)
                        acc = fma(new, splat(C[s, b, t, n]), acc)
                    at = (b * length + t) * channels + d0
                    prefetch(summed, at + ahead)
                    if s > 0:
                        acc = add(acc, load(summed, at))
                    store(summed, at, acc)
            for t in range(length):
                at = (b * length + t) * channels + d0
                prefetch(z, at + AHEAD * channels)
                prefetch(gated, at + AHEAD * channels)
                gate = load(z, at)
                store(gated, at, mul(mul(load(summed, at), gate), sigmoid(gate)))

    @njit(nogil=True, error_model="numpy")
    def backward(
        u: Any, delta: Any, A2: Any, B: Any, C: Any, D: Any, z: Any, bias: Any, summed: Any, grad: Any,
        du: Any, ddelta: Any, dA: Any, dB: Any, dC: Any, dD: Any, dz: Any, dbias: Any,
    ) -> None:  # fmt: skip
        directions, batch, length, channels = u.shape
        for b in range(batch):
            states_before = np.empty((length + 1) * N * W, _F)
            decays = np.empty(length * N * W, _F)
            a, dh, da = np.empty(N * W, _F), np.empty(N * W, _F), np.empty(N * W, _F)
            steps, grads = np.empty(length * W, _F), np.empty(length * W, _F)
            dB[:, b] = _F(0)
            dC[:, b] = _F(0)
            one, zero = splat(_F(1)), splat(_F(0))
            for d0 in range(0, channels, W):
                for t in range(length):
                    at = (b * length + t) * channels + d0
                    prefetch(z, at + AHEAD * channels)
                    prefetch(grad, at + AHEAD * channels)
                    prefetch(summed, at + AHEAD * channels)
                    prefetch(dz, at + AHEAD * channels)
                    gate, g = load(z, at), load(grad, at)
                    sig = sigmoid(gate)
                    store(grads, t * W, mul(g, mul(gate, sig)))
                    slope = mul(sig, fma(gate, sub(one, sig), one))
                    store(dz, at, mul(mul(g, load(summed, at)), slope))
                for s in range(directions):
                    ahead = (1 - 2 * s) * AHEAD * channels
                    for n in range(N):
                        store(states_before, n * W, zero)
                        store(dh, n * W, zero)
                        store(da, n * W, zero)
                        store(a, n * W, load(A2, (s * N + n) * channels + d0))
                    skip, shift = load(D, s * channels + d0), load(bias, s * channels + d0)
                    for k in range(length):
                        t = length - 1 - k if s == 1 else k
                        at = ((s * batch + b) * length + t) * channels + d0
                        prefetch(u, at + ahead)
                        prefetch(delta, at + ahead)
                        step = softplus(add(load(delta, at), shift))
                        store(steps, k * W, step)
                        dx = mul(step, load(u, at))
                        for n in range(N):
                            decay = exp2_of_product(step, load(a, n * W))
                            store(decays, (k * N + n) * W, decay)
                            new = fma(load(states_before, (k * N + n) * W), decay, mul(dx, splat(B[s, b, t, n])))
                            store(states_before, ((k + 1) * N + n) * W, new)
                    dskip, dshift = zero, zero
                    for back in range(length):
                        k = length - 1 - back
                        t = length - 1 - k if s == 1 else k
                        at = ((s * batch + b) * length + t) * channels + d0
                        prefetch(u, at - ahead)
                        prefetch(delta, at - ahead)
                        prefetch(du, at - ahead)
                        prefetch(ddelta, at - ahead)
                        g, x, step = load(grads, t * W), load(u, at), load(steps, k * W)
                        scaled = mul(step, x)
                        dx, dstep = zero, zero
                        for n in range(N):
                            cell = (k * N + n) * W
                            d = fma(g, splat(C[s, b, t, n]), load(dh, n * W))
                            dC[s, b, t, n] += reduce_add(mul(g, load(states_before, cell + N * W)))
                            dB[s, b, t, n] += reduce_add(mul(d, scaled))
                            dx = fma(d, splat(B[s, b, t, n]), dx)
                            d = mul(d, load(decays, cell))
                            store(dh, n * W, d)
                            d = mul(d, load(states_before, cell))
                            dstep = fma(d, load(a, n * W), dstep)
                            store(da, n * W, fma(d, step, load(da, n * W)))
                        store(du, at, fma(step, dx, mul(g, skip)))
                        slope = sigmoid(add(load(delta, at), shift))
                        dv = mul(fma(x, dx, mul(dstep, splat(_LN2))), slope)
                        store(ddelta, at, dv)
                        dshift = add(dshift, dv)
                        dskip = fma(g, x, dskip)
                    store(dD, (b * directions + s) * channels + d0, dskip)
                    store(dbias, (b * directions + s) * channels + d0, dshift)
                    for n in range(N):
                        store(dA, ((b * directions + s) * N + n) * channels + d0, load(da, n * W))

    return _Kernels(forward, backward)
