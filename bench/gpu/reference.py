"""The reference's own computation of a Vision Mamba on `selective_scan_cuda`, as the baseline.

Written from its formulas (golden README, "What the reference computes", and the layouts of mamba_simple.py v2 and
MambaInnerFnNoOutProj): channels first, one call of the convolution and one of the scan for each direction, the second
direction by flips, a separate division by two, float32 or autocast. One thing differs: torch's add and rms_norm replace
its Triton add + norm. It uses no CUDA graph, as the reference.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.mixer import Mixer
from model.vim import Vim


class Reference:
    """The baseline. `vim` has float32 weights, v2 and RMSNorm, as all released models."""

    def __init__(self, vim: Vim, *, autocast: bool) -> None:
        assert (vim.config.bimamba, vim.config.norm) == ("v2", "rms")
        self.vim = vim
        self.autocast = autocast
        self._device = vim.patch_embed.proj.weight.device.type
        self._scan: Any = importlib.import_module("selective_scan_cuda")
        self._conv: Any = importlib.import_module("causal_conv1d_cuda")

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) float32 -> logits (B, classes)."""
        narrow = torch.float16 if self._device == "cuda" else torch.bfloat16
        with torch.autocast(self._device, narrow, enabled=self.autocast):
            hidden = self.vim.embed(images)
            residual: Tensor | None = None
            for layer in self.vim.layers:
                residual = hidden.float() if residual is None else residual + hidden
                hidden = self._mix(layer.mixer, layer.norm(residual).to(hidden.dtype))  # type: ignore[operator, arg-type]
            assert residual is not None
            tokens = self.vim.norm_f(residual + hidden).to(hidden.dtype)
            return self.vim.forward_head(self.vim.pool(tokens))

    def _mix(self, mixer: Mixer, hidden: Tensor) -> Tensor:
        images, length, width = hidden.shape
        xz = mixer.in_proj.weight @ hidden.reshape(-1, width).t()
        xz = xz.view(-1, images, length).transpose(0, 1)  # (B, 2E, L), L fastest
        forward = self._inner(mixer, xz, "", mixer.A_log, mixer.D)
        backward = self._inner(mixer, xz.flip([-1]), "_b", mixer.A_b_log, mixer.D_b)
        out = (forward + backward.flip([-1])).transpose(1, 2)
        return F.linear(out / 2 if mixer.halve else out, mixer.out_proj.weight, mixer.out_proj.bias)

    def _inner(self, mixer: Mixer, xz: Tensor, suffix: str, A_log: Tensor, D: Tensor) -> Tensor:
        """One direction, gated: (B, E, L)."""
        images, _, length = xz.shape
        parts: list[Any] = [mixer.get_submodule(name + suffix) for name in ("conv1d", "x_proj", "dt_proj")]
        conv, x_proj, dt_proj = parts
        rank, states = mixer.dt_rank, mixer.d_state
        x, z = xz.chunk(2, dim=1)
        u = torch.empty_like(x)
        self._conv.causal_conv1d_fwd(x, conv.weight[:, 0], conv.bias, None, None, u, None, True)
        x_dbl = F.linear(u.transpose(1, 2).reshape(-1, u.shape[1]), x_proj.weight)
        delta = dt_proj.weight @ x_dbl[:, :rank].t()
        delta = delta.view(-1, images, length).transpose(0, 1)
        B, C = (
            part.reshape(images, length, states).transpose(1, 2)[:, None].contiguous()
            for part in (x_dbl[:, rank : rank + states], x_dbl[:, rank + states :])
        )
        A, bias = -torch.exp(A_log.float()), dt_proj.bias.float()
        gated: Tensor = self._scan.fwd(u, delta, A, B, C, D.float(), z, bias, True)[2]
        return gated
