"""One layer's weights in the layout of the Triton kernels: stacked, transposed, padded and folded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model.mixer import Mixer

LOG2E = 1.4426950408889634
STATES = 16
SMALLEST_RANK = 16  # Triton's matrix product needs at least 16 terms


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """S = 2 directions, D tokens' width, E inner channels, R' the rank of dt rounded up to a power of two."""

    in_proj: Tensor  # (2E, D)
    x_proj: Tensor  # (S, 32 + R', E): B and C interleaved, then dt
    dt_proj: Tensor  # (S, E, R')
    params: Tensor  # (S, 23, E) float32: 16 rows A log2(e), 4 convolution weights and bias, dt's bias, D
    out_proj: Tensor  # (D, E), halved if the configuration halves

    @property
    def rank(self) -> int:
        """R'."""
        return self.dt_proj.shape[-1]

    @property
    def width(self) -> int:
        """D."""
        return self.in_proj.shape[1]


@torch.no_grad()
def prepare(mixer: Mixer) -> LayerWeights:
    """Return the weights of a v2 mixer with 16 states and convolution width 4, in its projections' dtype."""
    ends = ("", "_b")
    rank = padded_rank(mixer.dt_rank)
    return LayerWeights(
        in_proj=mixer.in_proj.weight.detach().contiguous(),
        x_proj=torch.stack([_interleaved(_weight(mixer, f"x_proj{end}"), mixer.dt_rank, rank) for end in ends]),
        dt_proj=torch.stack([F.pad(_weight(mixer, f"dt_proj{end}"), (0, rank - mixer.dt_rank)) for end in ends]),
        params=torch.stack([_params(mixer, end) for end in ends]),
        out_proj=_halved(mixer).contiguous(),
    )


def padded_rank(rank: int) -> int:
    """Round a rank up to a power of two, at least 16."""
    return max(SMALLEST_RANK, 1 << (rank - 1).bit_length())


def _weight(mixer: Mixer, name: str) -> Tensor:
    return mixer.get_parameter(f"{name}.weight").detach()


def _halved(mixer: Mixer) -> Tensor:
    weight = _weight(mixer, "out_proj")
    return weight / 2 if mixer.halve else weight


def _interleaved(weight: Tensor, dt_rank: int, rank: int) -> Tensor:
    """x_proj's weight (R + 32, E) with rows dt, B, C -> (32 + R', E) with rows B0, C0, B1, C1, ..., dt, zeros."""
    low, b, c = torch.split(weight, [dt_rank, STATES, STATES])
    pairs = torch.stack((b, c), dim=1).flatten(0, 1)
    return F.pad(torch.cat((pairs, low)), (0, 0, 0, rank - dt_rank))


def _params(mixer: Mixer, end: str) -> Tensor:
    rates = -torch.exp(mixer.get_parameter("A_b_log" if end else "A_log").float()).t() * LOG2E
    conv = mixer.get_submodule(f"conv1d{end}")
    kernel = conv.get_parameter("weight")[:, 0].float().t()
    skip = mixer.get_parameter(f"D{end}").float()
    bias = torch.zeros_like(skip) if conv.bias is None else conv.get_parameter("bias").float()
    dt_bias = mixer.get_parameter(f"dt_proj{end}.bias").float()
    return torch.cat((rates, kernel, torch.stack((bias, dt_bias, skip)))).contiguous()
