"""The mixer's causal depthwise convolution with SiLU, fused and differentiable, for training on a CPU.

Same result as `model.conv.causal_conv`; torch's own backward pass for it takes a third of a training step.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numba import njit
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.vectors import LANES, add, fma, load, mul, sigmoid, splat, store, sub

_F = np.float32


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """See `model.conv`. Needs a bias, and runs on float32."""
    assert bias is not None
    directions = [_Conv.apply(x, weight[s], bias[s], s == 1) for s in range(len(weight))]  # type: ignore[no-untyped-call]
    return torch.stack([cast(Tensor, out) for out in directions])


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, reverse: bool) -> Tensor:
        """Convolve and remember the inputs."""
        x, taps, bias = x.detach().contiguous(), weight.detach().t().contiguous(), bias.detach()
        out = torch.empty_like(x)
        _kernels(len(taps)).forward(x.numpy(), taps.numpy(), bias.numpy(), 1 if reverse else -1, out.numpy())
        ctx.save_for_backward(x, taps, bias)
        ctx.reverse = reverse
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Gradients of the input, the weight and the bias."""
        x, taps, bias = ctx.saved_tensors
        dx, dtaps, dbias = torch.empty_like(x), x.new_empty(len(x), *taps.shape), x.new_empty(len(x), len(bias))
        arrays = (t.numpy() for t in (grad.contiguous(), dx, dtaps, dbias))
        _kernels(len(taps)).backward(x.numpy(), taps.numpy(), bias.numpy(), 1 if ctx.reverse else -1, *arrays)
        return dx, dtaps.sum(0).t(), dbias.sum(0), None


class _Kernels(NamedTuple):
    forward: Any
    backward: Any


@lru_cache
def _kernels(taps_count: int) -> _Kernels:
    K, W = taps_count, LANES

    @njit(inline="always")
    def convolved(x: Any, taps: Any, shift: Any, b: Any, t: Any, d0: Any, side: Any) -> Any:
        _, length, channels = x.shape
        acc = shift
        for k in range(K):
            source = t + side * (K - 1 - k)
            if 0 <= source < length:
                acc = fma(load(x, (b * length + source) * channels + d0), load(taps, k * channels + d0), acc)
        return acc

    @njit(nogil=True, error_model="numpy")
    def forward(x: Any, taps: Any, bias: Any, side: Any, out: Any) -> None:
        batch, length, channels = x.shape
        for b in range(batch):
            for t in range(length):
                for d0 in range(0, channels, W):
                    v = convolved(x, taps, load(bias, d0), b, t, d0, side)
                    store(out, (b * length + t) * channels + d0, mul(v, sigmoid(v)))

    @njit(nogil=True, error_model="numpy")
    def backward(x: Any, taps: Any, bias: Any, side: Any, grad: Any, dx: Any, dtaps: Any, dbias: Any) -> None:
        batch, length, channels = x.shape
        for b in range(batch):
            slopes = np.empty(length * channels, _F)
            sums = np.zeros((K + 1) * channels, _F)
            one = splat(_F(1))
            for t in range(length):
                for d0 in range(0, channels, W):
                    v = convolved(x, taps, load(bias, d0), b, t, d0, side)
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
                    acc = splat(_F(0))
                    for k in range(K):
                        target = t - side * (K - 1 - k)
                        if 0 <= target < length:
                            acc = fma(load(slopes, target * channels + d0), load(taps, k * channels + d0), acc)
                    store(dx, (b * length + t) * channels + d0, acc)
            for d in range(channels):
                dbias[b, d] = sums[K * channels + d]
                for k in range(K):
                    dtaps[b, k, d] = sums[k * channels + d]

    return _Kernels(forward, backward)
