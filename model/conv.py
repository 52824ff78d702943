"""The causal depthwise convolution with SiLU before the scan: its signature, and plain torch for any device.

    u_t = silu(bias + sum over k < K of weight_k x_{t-K+1+k})        reference: mamba_simple.py, Mamba.conv1d, conv1d_b

Shapes: S directions (1 or 2), B images, L tokens, E channels, K weights per channel.

    x          (B, L, E)   any strides
    weight     (S, E, K)   the last weight applies to the current token
    bias       (S, E), or None
    returns    (S, B, L, E)

All tensors are in token order: direction 0 reads only earlier tokens; direction 1 is its mirror image and reads only
later ones.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

ConvFn = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution above, in torch, in the dtype of x."""
    channels_first = x.transpose(1, 2)
    biases = [None] * len(weight) if bias is None else list(bias)
    directions = [_one_direction(channels_first, weight[s], biases[s], reverse=s == 1) for s in range(len(weight))]
    return torch.stack([F.silu(out.transpose(1, 2)) for out in directions])


def _one_direction(x: Tensor, weight: Tensor, bias: Tensor | None, *, reverse: bool) -> Tensor:
    pad = weight.shape[-1] - 1
    padding, kernel = ((0, pad), weight.flip(-1)) if reverse else ((pad, 0), weight)
    return F.conv1d(F.pad(x, padding), kernel[:, None], bias, groups=len(weight))
