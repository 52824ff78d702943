"""The reference's plain loop, operation by operation (mamba_ssm, selective_scan_interface.py, selective_scan_ref).

It has the signature of `model.scan`; a direction that runs backward is flipped before and after, as the reference does.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor) -> Tensor:
    """See `model.scan`."""
    out = torch.zeros_like(z)
    for s in range(len(u)):
        parts = [_in_time(x, s).transpose(1, 2) for x in (u[s], delta[s], B[s], C[s], z)]
        found = _one(parts[0], parts[1], parts[2], parts[3], parts[4], A[s], D[s], delta_bias[s])
        out += _in_time(found.transpose(1, 2), s)
    return out


def _in_time(x: Tensor, direction: int) -> Tensor:
    return x.flip(1) if direction == 1 else x


def _one(u: Tensor, delta: Tensor, B: Tensor, C: Tensor, z: Tensor, A: Tensor, D: Tensor, bias: Tensor) -> Tensor:
    """u, delta, z (B, E, L); B, C (B, N, L); A (E, N); D, bias (E)."""
    delta = F.softplus(delta + bias[..., None])
    decays = torch.exp(torch.einsum("bdl,dn->bdln", delta, A))
    inputs = torch.einsum("bdl,bnl,bdl->bdln", delta, B, u)
    state, outputs = A.new_zeros(len(u), *A.shape), []
    for i in range(u.shape[2]):
        state = decays[:, :, i] * state + inputs[:, :, i]
        outputs.append(torch.einsum("bdn,bn->bd", state, C[:, :, i]))
    return (torch.stack(outputs, dim=2) + u * D[:, None]) * F.silu(z)
