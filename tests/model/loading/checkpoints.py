"""Small checkpoints for the loading tests, made from the model itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from model.backends.reference import scan
from model.config import VimConfig
from model.vim import Vim

TINY = VimConfig(image_size=(32, 32), patch_size=8, stride=8, embed_dim=16, depth=2, num_classes=5, d_state=4)
# The name of a factory of the reference, as the arguments of a training run have it.
FACTORY = "vim_tiny_patch16_stride8_224_bimambav2_final_pool_mean_abs_pos_embed_with_midclstok_div2"


def state(seed: int = 0, **changes: Any) -> dict[str, Tensor]:
    """A random state dict of the tiny model, with some of its configuration changed."""
    generator = torch.Generator().manual_seed(seed)
    vim = Vim(TINY.replace(**changes), scan)
    learned = {name: torch.randn(p.shape, generator=generator) * 0.2 for name, p in vim.named_parameters()}
    return {name: learned.get(name, tensor) for name, tensor in vim.state_dict().items()}


def rope_state(**changes: Any) -> dict[str, Tensor]:
    """A state dict like the older released model's, with RoPE and the class token first."""
    return state(rope=True, class_token="first", **changes)
