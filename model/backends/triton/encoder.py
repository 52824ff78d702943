"""All layers of a Vim in our own Triton kernels: four launches per layer, of which the first (in_proj) is cuBLAS's.

Supports the architecture of the released models, at any depth, length, class token and pool, and at widths that are up
to four equal powers of two.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from model.backends.triton import launch
from model.backends.triton import support as triton_support
from model.backends.triton.weights import LayerWeights, prepare
from model.config import VimConfig
from model.vim import EncoderFn, Norm, Vim

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
LARGEST_WIDTH, MOST_PARTS, SMALLEST_PART = 1024, 4, 16
LARGEST_RANK = 64


def unsupported(vim: Vim) -> str | None:
    """Return None, or the property of the model that the fused layers do not support."""
    config, dtype = vim.config, vim.patch_embed.proj.weight.dtype
    wanted = {
        "bimamba": "v2",
        "bidirectional_layers": False,
        "rope": False,
        "norm": "rms",
        "layer_scale": False,
        "d_state": 16,
        "d_conv": 4,
    }
    for name, value in wanted.items():
        if getattr(config, name) != value:
            return f"the fused layers need {name} {value}, this model has {getattr(config, name)}"
    if config.projection_bias:
        return "the fused layers have no bias in their projections"
    if dtype not in DTYPES:
        return f"the fused layers do not compute in {dtype}"
    return _unsuitable_width(config)


def _unsuitable_width(config: VimConfig) -> str | None:
    count, part = launch.parts(config.embed_dim)
    if config.embed_dim > LARGEST_WIDTH or count > MOST_PARTS or part < SMALLEST_PART:
        return f"the fused layers need a width of up to four equal powers of two from 16 on, not {config.embed_dim}"
    if config.dt_rank > LARGEST_RANK:
        return f"the fused layers need dt_rank up to {LARGEST_RANK}, not {config.dt_rank}"
    return None


def encoder(vim: Vim, plan: launch.Plan | None = None) -> EncoderFn:
    """Return the function for `vim.encoder`: tokens (B, L, D) -> tokens after the final norm (B, L, D).

    `plan` is one of `launch.variants`, for a check; else each batch has its own.
    """
    layers = [prepare(layer.mixer) for layer in vim.layers]  # type: ignore[arg-type]
    norms = [layer.norm for layer in vim.layers] + [vim.norm_f]
    weights = [_weight(norm) for norm in norms]  # type: ignore[arg-type]
    epsilon = vim.config.norm_epsilon
    device = launch.Device.of(vim.norm_f.weight.device)

    def encode(tokens: Tensor) -> Tensor:
        with torch.cuda.device(triton_support.device_of(tokens)):
            normed, residual = launch.first_norm(tokens, weights[0], epsilon)
            for layer, norm in zip(layers, weights[1:], strict=True):
                normed = layer_forward(normed, residual, layer, norm, epsilon, device, plan)
            return normed

    return encode


def _weight(norm: Norm) -> Tensor:
    return norm.weight.detach().float().contiguous()


def layer_forward(
    normed: Tensor,
    residual: Tensor,
    layer: LayerWeights,
    norm: Tensor,
    epsilon: float,
    device: launch.Device,
    plan: launch.Plan | None = None,
) -> Tensor:
    """One layer including the next layer's norm: (B, L, D) -> (B, L, D); adds to `residual` in place."""
    xz = F.linear(normed, layer.in_proj)
    plan = plan or launch.plan(xz, normed.shape[-1], device)
    dbc = launch.project(xz, layer, plan.project)
    y = launch.scan(xz, dbc, layer, plan.pieces)
    return launch.out_project(y, xz, layer, residual, norm, epsilon, device, plan.out_project)
