"""The scan's reference implementation: the recurrence token by token, as written in the paper (see `model.scan`).

It is slow, exact in float64, and runs on every device. Self-tests compare the other scans with it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def unavailable(device: torch.device) -> str | None:
    """Return None: this scan runs on every device."""
    return None


def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor) -> Tensor:
    """The scan of `model.scan`, in the wider of float32 and the dtype of u."""
    wide = torch.promote_types(u.dtype, torch.float32)
    directions = [
        _one_direction(
            u[s].to(wide), delta[s].to(wide), A[s].to(wide), B[s].to(wide), C[s].to(wide), D[s], delta_bias[s], s
        )
        for s in range(u.shape[0])
    ]
    return (torch.stack(directions).sum(0) * F.silu(z.to(wide))).to(u.dtype)


def _one_direction(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor, direction: int
) -> Tensor:
    images, length, channels = u.shape
    dt = F.softplus(delta + bias)
    state = u.new_zeros(images, channels, A.shape[1])
    out = torch.empty_like(u)
    steps = range(length) if direction == 0 else range(length - 1, -1, -1)
    for t in steps:
        decay = torch.exp(dt[:, t, :, None] * A)
        state = decay * state + (dt[:, t] * u[:, t])[:, :, None] * B[:, t, None, :]
        out[:, t] = (state * C[:, t, None, :]).sum(-1) + D * u[:, t]
    return out
