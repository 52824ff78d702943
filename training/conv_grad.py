"""The mixer's causal depthwise convolution, fused with SiLU, and its gradient, for training on a CPU.

The result is that of `model.conv.causal_conv` in two directions. torch's backward pass takes a third of a training
step.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from torch import Tensor

from model.jit.simd import LANES, add, fma, load, mul, sigmoid, splat, store, sub

_F = np.float32
_SIDES = (-1, 1)


def conv_forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolution and SiLU of x (B, L, E) in both directions: weight (2, K, E), bias (2, E) -> (2, B, L, E).

    Direction 0 reads only the past, direction 1 only the future.
    """
    out = x.new_empty(2, *x.shape)
    for s, side in enumerate(_SIDES):
        _kernels(weight.shape[1]).forward(x.numpy(), weight[s].numpy(), bias[s].numpy(), side, out[s].numpy())
    return out


def conv_backward(x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias, given the gradient `grad` (2, B, L, E) of the result."""
    dx, d_weight, d_bias = (
        x.new_zeros(x.shape),
        x.new_empty(2, len(x), *weight.shape[1:]),
        x.new_empty(2, *x.shape[::2]),
    )
    for s, side in enumerate(_SIDES):
        inputs = (t.numpy() for t in (x, weight[s], bias[s]))
        outputs = (t.numpy() for t in (grad[s], dx, d_weight[s], d_bias[s]))
        _kernels(weight.shape[1]).backward(*inputs, side, *outputs)
    return dx, d_weight.sum(1), d_bias.sum(1)


class _Kernels(NamedTuple):
    forward: Any
    backward: Any


@lru_cache
def _kernels(width: int) -> _Kernels:
    K, W = width, LANES

    @njit(inline="always")
    def convolved(x: Any, weight: Any, bias: Any, b: Any, t: Any, d0: Any, side: Any) -> Any:
        _, length, channels = x.shape
        acc = bias
        for k in range(K):
            source = t + side * (K - 1 - k)
            if 0 <= source < length:
                acc = fma(load(x, (b * length + source) * channels + d0), load(weight, k * channels + d0), acc)
        return acc

    @njit(nogil=True, error_model="numpy")
    def forward(x: Any, weight: Any, bias: Any, side: Any, out: Any) -> None:
        batch, length, channels = x.shape
        for b in range(batch):
            for t in range(length):
                for d0 in range(0, channels, W):
                    v = convolved(x, weight, load(bias, d0), b, t, d0, side)
                    store(out, (b * length + t) * channels + d0, mul(v, sigmoid(v)))

    @njit(nogil=True, error_model="numpy")
    def backward(x: Any, weight: Any, bias: Any, side: Any, grad: Any, dx: Any, dweight: Any, dbias: Any) -> None:
        batch, length, channels = x.shape
        for b in range(batch):
            slopes = np.empty(length * channels, _F)
            sums = np.zeros((K + 1) * channels, _F)
            one = splat(_F(1))
            for t in range(length):
                for d0 in range(0, channels, W):
                    v = convolved(x, weight, load(bias, d0), b, t, d0, side)
                    sig = sigmoid(v)
                    slope = mul(load(grad, (b * length + t) * channels + d0), mul(sig, fma(v, sub(one, sig), one)))
                    store(slopes, t * channels + d0, slope)
                    store(sums, K * channels + d0, add(slope, load(sums, K * channels + d0)))
                    for k in range(K):
                        source = t + side * (K - 1 - k)
                        if 0 <= source < length:
                            value = load(x, (b * length + source) * channels + d0)
                            store(sums, k * channels + d0, fma(value, slope, load(sums, k * channels + d0)))
            for t in range(length):
                for d0 in range(0, channels, W):
                    acc = load(dx, (b * length + t) * channels + d0)
                    for k in range(K):
                        target = t - side * (K - 1 - k)
                        if 0 <= target < length:
                            acc = fma(load(slopes, target * channels + d0), load(weight, k * channels + d0), acc)
                    store(dx, (b * length + t) * channels + d0, acc)
            for d in range(channels):
                dbias[b, d] = sums[K * channels + d]
                for k in range(K):
                    dweight[b, k, d] = sums[k * channels + d]

    return _Kernels(forward, backward)
