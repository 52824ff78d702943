"""The Mamba mixer with the bidirectional wiring of Vision Mamba (reference: mamba_simple.py, Mamba.forward).

This module has the projections and the none / v1 / v2 wiring. A backend may replace the convolution (`model.conv`) and
the recurrence (`model.scan`). Parameter names are the reference's.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import VimConfig
from model.conv import ConvFn, causal_conv
from model.scan import ScanFn


class Mixer(nn.Module):
    """The mixer of one layer: (B, L, D) -> (B, L, D).

    `wiring` is the configuration's `bimamba`: "none" has one direction, "v1" scans one convolved input in two
    directions, "v2" has a convolution and projections for each direction. `halve` says whether the sum of both
    directions is halved.
    """

    def __init__(self, config: VimConfig, scan: ScanFn) -> None:
        super().__init__()
        self.conv: ConvFn = causal_conv
        self.scan = scan
        self.wiring = config.bimamba
        self.d_state, self.dt_rank = config.d_state, config.dt_rank
        self.halve = config.bimamba == "v2" and config.divide_out
        width, inner = config.embed_dim, config.d_inner
        self.A_log = nn.Parameter(torch.empty(inner, config.d_state))
        self.D = nn.Parameter(torch.empty(inner))
        if config.bimamba != "none":
            self.A_b_log = nn.Parameter(torch.empty(inner, config.d_state))
        if config.bimamba == "v2":
            self.D_b = nn.Parameter(torch.empty(inner))
        self.in_proj = nn.Linear(width, 2 * inner, bias=config.projection_bias)
        self._add_direction(config, "")
        if config.bimamba == "v2":
            self._add_direction(config, "_b")
        self.out_proj = nn.Linear(inner, width, bias=config.projection_bias)
        if config.layer_scale:
            self.gamma = nn.Parameter(torch.empty(width))

    def _add_direction(self, config: VimConfig, suffix: str) -> None:
        inner, rank = config.d_inner, config.dt_rank
        conv = nn.Conv1d(inner, inner, config.d_conv, groups=inner, bias=config.conv_bias)
        self.add_module(f"conv1d{suffix}", conv)
        self.add_module(f"x_proj{suffix}", nn.Linear(inner, rank + 2 * config.d_state, bias=False))
        self.add_module(f"dt_proj{suffix}", nn.Linear(rank, inner))

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        x, z = self.in_proj(hidden).chunk(2, dim=-1)
        u, delta, B, C = self._scan_inputs(x)
        y = self.scan(u, delta, self.decay_rates(), B, C, self.skip_weights(), z, self.delta_bias())
        out = F.linear(y, self.out_proj.weight / 2 if self.halve else self.out_proj.weight, self.out_proj.bias)
        return out * self.gamma if hasattr(self, "gamma") else out

    def _scan_inputs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return u, delta (S, B, L, E) and B, C (S, B, L, N) of the S directions of the scan."""
        u = self.conv(x, *self.conv_weights())
        parts = [x_proj(u[s]) for s, x_proj in enumerate(self.x_projections())]
        split = [part.split((self.dt_rank, self.d_state, self.d_state), dim=-1) for part in parts]
        delta = torch.stack([F.linear(p[0], dt.weight) for p, dt in zip(split, self.dt_projections(), strict=True)])
        B, C = (torch.stack([p[i] for p in split]) for i in (1, 2))
        if self.wiring != "v1":
            return u, delta, B, C
        # v1 shares everything except A: both directions scan the output of the forward convolution.
        return _twice(u), _twice(delta), _twice(B), _twice(C)

    def conv_weights(self) -> tuple[Tensor, Tensor | None]:
        """Weight (C, E, K) and bias (C, E) of the convolution, as `model.conv` takes them; C = 2 for v2, else 1."""
        convs = self._submodules("conv1d")
        weight = torch.stack([conv.weight[:, 0] for conv in convs])
        return weight, None if convs[0].bias is None else torch.stack([conv.bias for conv in convs])

    def x_projections(self) -> list[nn.Linear]:
        """The C projections from u (E) to the low-rank step size, B and C (R + 2 N)."""
        return self._submodules("x_proj")

    def dt_projections(self) -> list[nn.Linear]:
        """The C projections from the low-rank step size (R) to delta (E)."""
        return self._submodules("dt_proj")

    def delta_bias(self) -> Tensor:
        """Bias of delta for each of the S directions of the scan: (S, E); v1 uses the forward one twice."""
        biases: list[Tensor] = [dt_proj.bias for dt_proj in self.dt_projections()]
        return torch.stack(biases * 2 if self.wiring == "v1" else biases)

    def decay_rates(self) -> Tensor:
        """A = -exp(A_log) of each direction of the scan: (S, E, N)."""
        logs = (self.A_log,) if self.wiring == "none" else (self.A_log, self.A_b_log)
        return -torch.exp(torch.stack(logs))

    def skip_weights(self) -> Tensor:
        """D of each direction of the scan: (S, E); v1 uses the forward one twice."""
        if self.wiring == "none":
            return self.D[None]
        return torch.stack((self.D, self.D_b if self.wiring == "v2" else self.D))

    def _submodules(self, name: str) -> list[Any]:
        suffixes = ("", "_b") if self.wiring == "v2" else ("",)
        return [self.get_submodule(name + suffix) for suffix in suffixes]


def _twice(x: Tensor) -> Tensor:
    return x.expand(2, *x.shape[1:])
