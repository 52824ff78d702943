"""One layer's weights as the steps of a pass on a CPU take them."""

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
    """Contiguous float32, those of the products perhaps bfloat16; large ones are the module's own, if those are so.

    S directions, of which C are convolved.
    """

    norm: Tensor  # (D)
    into: Tensor  # (2 E, D)
    into_bias: Tensor | None  # (2 E)
    taps: Tensor  # (C, K, E)
    conv_bias: Tensor  # (C, E)
    select: Tensor  # (C, R + 2 N, E)
    step: Tensor  # (S, R, E)
    step_bias: Tensor  # (S, E)
    rates: Tensor  # A / ln 2 (S, N, E)
    skip: Tensor  # (S, E)
    out: Tensor  # (D, E), the layer scale in it
    out_bias: Tensor | None  # (D)


def prepared(norm: Tensor, mixer: Mixer, products: torch.dtype = torch.float32) -> LayerWeights:
    """From the module's; the three weights of products in their dtype."""
    if mixer.in_proj.weight.dtype != torch.float32:
        mixer = copy.deepcopy(mixer).float()
    weight, conv_bias = mixer._taps()
    steps = [dt.weight.t() for dt in mixer._both("dt_proj")]
    out, out_bias, gamma = mixer.out_proj.weight, mixer.out_proj.bias, getattr(mixer, "gamma", None)
    if gamma is not None:
        out, out_bias = out * gamma[:, None], None if out_bias is None else out_bias * gamma
    return LayerWeights(
        norm=norm.detach(),
        into=mixer.in_proj.weight.detach().to(products).contiguous(),
        into_bias=mixer.in_proj.bias,
        taps=weight.transpose(1, 2).contiguous(),
        conv_bias=weight.new_zeros(weight.shape[:2]) if conv_bias is None else conv_bias,
        select=torch.stack([x_proj.weight for x_proj in mixer._both("x_proj")]).to(products),
        step=torch.stack(steps * 2 if mixer.wiring == "v1" else steps),
        step_bias=mixer._delta_bias(),
        rates=(mixer._decay_rates().transpose(1, 2) * LOG2E).contiguous(),
        skip=mixer._stacked("D").contiguous(),
        out=out.detach().to(products).contiguous(),
        out_bias=out_bias,
    )
