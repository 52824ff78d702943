"""One layer's weights in the layout of the CPU kernels."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from model.mixer import Mixer

LOG2E = 1.4426950408889634


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """Contiguous float32; the weights of products may be bfloat16. Large tensors share the module's memory if possible.

    S directions of the scan, C of the convolution, D tokens' width, E inner channels, K kernel width, R rank, N states.
    """

    norm: Tensor  # (D)
    in_proj: Tensor  # (2 E, D)
    in_proj_bias: Tensor | None  # (2 E)
    conv_weight: Tensor  # (C, K, E)
    conv_bias: Tensor  # (C, E)
    x_proj: Tensor  # (C, R + 2 N, E)
    dt_proj: Tensor  # (S, R, E)
    dt_bias: Tensor  # (S, E)
    A_log2e: Tensor  # (S, N, E): A log2(e)
    D: Tensor  # (S, E)
    out_proj: Tensor  # (D, E), multiplied by the layer scale
    out_proj_bias: Tensor | None  # (D)


def prepare(norm: Tensor, mixer: Mixer, products: torch.dtype = torch.float32) -> LayerWeights:
    """Return the layer's weights; those of in_proj, x_proj and out_proj in the dtype `products`."""
    if mixer.in_proj.weight.dtype != torch.float32:
        mixer = copy.deepcopy(mixer).float()
    weight, conv_bias = mixer.conv_weights()
    steps = [dt.weight.t() for dt in mixer.dt_projections()]
    out, out_bias, gamma = mixer.out_proj.weight, mixer.out_proj.bias, getattr(mixer, "gamma", None)
    if gamma is not None:
        out, out_bias = out * gamma[:, None], None if out_bias is None else out_bias * gamma
    return LayerWeights(
        norm=norm.detach(),
        in_proj=mixer.in_proj.weight.detach().to(products).contiguous(),
        in_proj_bias=mixer.in_proj.bias,
        conv_weight=weight.transpose(1, 2).contiguous(),
        conv_bias=weight.new_zeros(weight.shape[:2]) if conv_bias is None else conv_bias,
        x_proj=torch.stack([x_proj.weight for x_proj in mixer.x_projections()]).to(products),
        dt_proj=torch.stack(steps * 2 if mixer.wiring == "v1" else steps),
        dt_bias=mixer.delta_bias(),
        A_log2e=(mixer.decay_rates().transpose(1, 2) * LOG2E).contiguous(),
        D=mixer.skip_weights().contiguous(),
        out_proj=out.detach().to(products).contiguous(),
        out_proj_bias=out_bias,
    )
