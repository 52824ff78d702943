"""The scan in plain torch (`scan="torch"`): both directions together, one fused in-place operation per token.

Decays and inputs of a chunk of tokens are computed in one vectorised pass, the recurrence is one `addcmul` per token,
and the outputs of the chunk are one batched product. Images are processed in groups and tokens in chunks, which bounds
the working set for every batch size and sequence length (6,085 tokens at 1,248 px).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Elements of one (T, S, b, E, N) temporary: two of them in float32 are about 8 MB, near the size of an L2 cache.
CHUNK_ELEMENTS = 1 << 20
# Elements of the state (S, b, E, N) of a group of images.
GROUP_ELEMENTS = 1 << 17


def unavailable(device: torch.device) -> str | None:
    """Return None: this scan runs on every device."""
    return None


def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor) -> Tensor:
    """The scan of `model.scan`, in the wider of float32 and the dtype of u."""
    wide = torch.promote_types(u.dtype, torch.float32)
    directions, images, _, channels = u.shape
    group = max(1, GROUP_ELEMENTS // (directions * channels * A.shape[-1]))
    out = torch.empty_like(z)
    for first in range(0, images, group):
        part = slice(first, first + group)
        dt = F.softplus(delta[:, part].to(wide) + delta_bias[:, None, None])
        y = _scan_group(u[:, part].to(wide), dt, A.to(wide), B[:, part].to(wide), C[:, part].to(wide), D.to(wide))
        out[part] = y.mul_(F.silu(z[part].to(wide)))
    return out


def _scan_group(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """Scan a group of images and sum over the directions: (b, L, E)."""
    y = (u * D[:, None, None]).sum(0)
    time_major = [_time_major(tensor) for tensor in (dt, dt * u, B, C)]
    length, directions, images, channels = time_major[0].shape
    state = u.new_zeros(directions, images, channels, A.shape[-1])
    chunk = max(1, CHUNK_ELEMENTS // state.numel())
    for start in range(0, length, chunk):
        out = _scan_chunk(*(tensor[start : start + chunk] for tensor in time_major), A=A, state=state)
        _add_in_token_order(y, out, start)
    return y


def _time_major(x: Tensor) -> Tensor:
    """(S, b, L, K) in token order -> (L, S, b, K) in the order in which each direction processes the tokens."""
    if x.shape[0] == 1:
        return x.permute(2, 0, 1, 3)
    return torch.stack((x[0].transpose(0, 1), x[1].transpose(0, 1).flip(0)), dim=1)


def _scan_chunk(dt: Tensor, dt_u: Tensor, B: Tensor, C: Tensor, *, A: Tensor, state: Tensor) -> Tensor:
    """Advance `state` (S, b, E, N) in place over T tokens and return their outputs (T, S, b, E)."""
    decay = (dt[..., None] * A[None, :, None]).exp_()
    states = dt_u[..., None] * B[..., None, :]
    previous = state
    for t in range(states.shape[0]):
        states[t].addcmul_(decay[t], previous)
        previous = states[t]
    state.copy_(previous)
    return torch.matmul(states, C[..., None]).squeeze(-1)


def _add_in_token_order(y: Tensor, out: Tensor, start: int) -> None:
    """Add a chunk's outputs to y (b, L, E): direction 0 processed tokens start.., direction 1 the mirrored ones."""
    tokens, length = out.shape[0], y.shape[1]
    y[:, start : start + tokens] += out[:, 0].transpose(0, 1)
    if out.shape[1] == 2:
        end = length - start
        y[:, end - tokens : end] += out[:, 1].flip(0).transpose(0, 1)
