"""Rotary position embedding over the patch grid, which the older released model has."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.config import VimConfig


class Rope(nn.Module):
    """Rotary position embedding over the patch grid (reference: vim/rope.py, VisionRotaryEmbeddingFast)."""

    freqs_cos: Tensor
    freqs_sin: Tensor

    def __init__(self, config: VimConfig) -> None:
        super().__init__()
        angles = _rope_angles(config)
        self.register_buffer("freqs_cos", angles.cos())
        self.register_buffer("freqs_sin", angles.sin())

    def forward(self, x: Tensor) -> Tensor:
        """Rotate (B, L, D). Quirk 6: with an odd length token 0 is not rotated, wherever the class token is."""
        if x.shape[1] % 2:
            return torch.cat((x[:, :1], self._rotate(x[:, 1:])), dim=1)
        return self._rotate(x)

    def _rotate(self, x: Tensor) -> Tensor:
        pairs = x.reshape(*x.shape[:-1], -1, 2)
        turned = torch.stack((-pairs[..., 1], pairs[..., 0]), dim=-1).flatten(-2)
        return x * self.freqs_cos + turned * self.freqs_sin


def _rope_angles(config: VimConfig) -> Tensor:
    """Angles (rows * rows, D): the patch row's in the first half of the columns, the patch column's in the second."""
    rows, half = config.image_size[0] // config.patch_size, config.embed_dim // 2
    frequencies = 10000.0 ** -(torch.arange(0, half, 2)[: half // 2].float() / half)
    position = torch.arange(rows) / rows * config.rope_pretrained_grid
    angles = (position[:, None] * frequencies).repeat_interleave(2, dim=-1)
    down = angles[:, None].expand(rows, rows, half)
    across = angles[None, :].expand(rows, rows, half)
    return torch.cat((down, across), dim=-1).flatten(0, 1)
