"""The network that is trained: a Vim with the reference's initialisation, and heads for distillation.

Only `Student.vim` is shipped; the three heads exist during training only.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.backends.torch_scan import scan
from model.config import VimConfig
from model.vim import Layer, Vim
from training.layer_grad import layer_step
from training.teacher import MIDDLE_WIDTH

PRODUCT = torch.bfloat16  # of the matrix products while training; the weights stay float32
_STEP_RANGE = (1e-3, 1e-1)


class Outputs(NamedTuple):
    """The student's outputs for a batch."""

    logits: Tensor  # (B, classes)
    pooled: Tensor  # (B, P): prediction of the teacher's pooled features
    maps: Tensor  # (B, side, side, M): prediction of its last feature map
    features: Tensor  # (B, D): the embedding that is served
    middle: Tensor | None  # (B, side, side, channels): prediction of its middle features


class Student(nn.Module):
    """A Vim, and linear maps from its tokens to the teacher's pooled features and feature maps."""

    def __init__(self, config: VimConfig, pooled_width: int, map_width: int, middle_width: int = MIDDLE_WIDTH) -> None:
        super().__init__()
        self.vim = Vim(config, scan)
        initialise(self.vim)
        self.pooled = nn.Linear(config.embed_dim, pooled_width)
        self.map = nn.Linear(config.embed_dim, map_width)
        self.middle = nn.Linear(config.embed_dim, middle_width)

    def forward(self, images: Tensor, map_side: int, middle_side: int = 0) -> Outputs:
        """Images (B, 3, H, W) -> the student's outputs."""
        tokens, middle = self._tokens(images)
        features = self.vim.pool(tokens)
        cells = self._cells(tokens, map_side)
        guess = self.middle(self._cells(middle, middle_side)) if middle_side else None
        return Outputs(self.vim.forward_head(features), self.pooled(features), self.map(cells), features, guess)

    def _cells(self, tokens: Tensor, side: int) -> Tensor:
        """(B, L, D) -> (B, side, side, D): averages of the patch tokens, without the class token."""
        slot = self.vim.config.class_slots[0]
        patches = torch.cat((tokens[:, :slot], tokens[:, slot + 1 :]), dim=1)
        grid = patches.transpose(1, 2).reshape(len(tokens), -1, *self.vim.config.grid)
        return F.adaptive_avg_pool2d(grid, side).permute(0, 2, 3, 1)

    def _tokens(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """`Vim.forward_tokens` computed with `layer_step`, and the residual stream after half of the layers."""
        hidden = self.vim.embed(images)
        residual = torch.zeros_like(hidden)
        middle = hidden
        for i, layer in enumerate(self.vim.layers):
            assert isinstance(layer, Layer)
            hidden, residual = layer_step(layer, hidden, residual, PRODUCT)
            if i + 1 == len(self.vim.layers) // 2:
                middle = F.layer_norm(residual + hidden, hidden.shape[-1:])
        tokens: Tensor = self.vim.norm_f(residual + hidden)
        return tokens, middle


@torch.no_grad()
def initialise(vim: Vim) -> None:
    """Initialise a Vim as the reference does before training; unlike there, dt_proj_b is initialised like dt_proj."""
    for name, parameter in vim.named_parameters():
        _fill(name.rsplit(".", 2)[-2:], parameter, vim.config)


def _fill(name: list[str], parameter: Tensor, config: VimConfig) -> None:
    owner, kind = (name[0] if len(name) > 1 else ""), name[-1]
    if kind in ("A_log", "A_b_log"):
        parameter.copy_(torch.arange(1, config.d_state + 1).log().expand_as(parameter))
    elif kind in ("D", "D_b") or owner in ("norm", "norm_f"):
        parameter.fill_(0.0 if kind == "bias" else 1.0)
    elif owner in ("dt_proj", "dt_proj_b"):
        _fill_step(kind, parameter, config)
    elif owner == "out_proj" and kind == "weight":
        nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))
        parameter /= math.sqrt(config.depth)
    elif owner in ("conv1d", "conv1d_b"):
        bound = config.d_conv**-0.5
        parameter.uniform_(-bound, bound)
    elif kind == "bias":
        parameter.zero_()
    elif owner == "proj":
        nn.init.trunc_normal_(parameter, std=(parameter[0].numel()) ** -0.5)
    else:
        nn.init.trunc_normal_(parameter, std=0.02)


def _fill_step(kind: str, parameter: Tensor, config: VimConfig) -> None:
    if kind == "weight":
        parameter.uniform_(-(config.dt_rank**-0.5), config.dt_rank**-0.5)
        return
    low, high = (math.log(bound) for bound in _STEP_RANGE)
    step = torch.empty_like(parameter).uniform_(low, high).exp()
    parameter.copy_(step + torch.log(-torch.expm1(-step)))


def resized(state: dict[str, Tensor], old: VimConfig, new: VimConfig) -> dict[str, Tensor]:
    """Return the student's weights with the position embedding interpolated to another image size."""
    key = "vim.pos_embed"
    if old.grid == new.grid:
        return state
    (slot,), (new_slot,) = old.class_slots, new.class_slots
    rows = state[key]
    patches = torch.cat((rows[:, :slot], rows[:, slot + 1 :]), dim=1).transpose(1, 2).reshape(1, -1, *old.grid)
    patches = F.interpolate(patches, new.grid, mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
    rows = torch.cat((patches[:, :new_slot], rows[:, slot : slot + 1], patches[:, new_slot:]), dim=1)
    return state | {key: rows}
