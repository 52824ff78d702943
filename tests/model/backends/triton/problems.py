"""Seeded layers and activations for the kernels, and torch's results in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from model.backends import reference
from model.backends.triton.weights import LayerWeights, prepare
from model.config import VimConfig
from model.conv import causal_conv
from model.mixer import Mixer

# Largest allowed error, relative to the largest value.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}
DTYPES = list(TOLERANCE)
LENGTHS = [1, 2, 3, 4, 5, 16, 17]
ONE = 1.2784645427610738  # silu(ONE) = 1


def config(width: int, expand: float = 2) -> VimConfig:
    """One layer of a released model, with another width."""
    return VimConfig(embed_dim=width, expand=expand, depth=1)


def mixer(shape: VimConfig, dtype: torch.dtype, seed: int = 0) -> Mixer:
    """Random weights, each product about as large as its input; the recurrence's stay float32."""
    layer = Mixer(shape, reference.scan).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in layer.named_parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
        values = torch.randn(parameter.shape, generator=generator) / fan_in**0.5
        wide = name in ("A_log", "A_b_log", "D", "D_b", "dt_proj.bias", "dt_proj_b.bias")
        parameter.data = values if wide else values.to(dtype)
    return layer


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    """Return seeded standard normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def low_rank(layer: LayerWeights, shape: VimConfig, images: int, length: int, scale: float = 1) -> Tensor:
    """Return a possible output of x_proj, (2, B, L, 32 + R'), zero beyond the rank; `scale` multiplies dt's part."""
    dbc = normal(2, images, length, 32 + layer.rank, seed=2)
    dbc[..., 32:] *= scale
    dbc[..., 32 + shape.dt_rank :] = 0
    return dbc


def expected_scan(xz: Tensor, dbc: Tensor, layer: Mixer) -> Tensor:
    """Both directions' <h, C> + D u (2, B, L, E) in float64, from in_proj's and x_proj's outputs."""
    exact = layer.double()
    u = causal_conv(xz.double().chunk(2, dim=-1)[0], *exact.conv_weights())
    low = dbc[..., 32 : 32 + layer.dt_rank].to(xz.dtype).double()
    B, C = dbc[..., 0:32:2].double(), dbc[..., 1:32:2].double()
    weights = [exact.get_parameter(f"dt_proj{end}.weight") for end in ("", "_b")]
    delta = torch.stack([low[s] @ weight.t() for s, weight in enumerate(weights)])
    fixed = exact.decay_rates(), exact.skip_weights(), exact.delta_bias()
    return torch.stack([_direction(s, u, delta, B, C, *fixed) for s in (0, 1)])


def _direction(s: int, u: Tensor, delta: Tensor, B: Tensor, C: Tensor, A: Tensor, D: Tensor, bias: Tensor) -> Tensor:
    turned: Callable[[Tensor], Tensor] = (lambda x: x[s : s + 1].flip(2)) if s else (lambda x: x[:1])
    gate = torch.full_like(u[0], ONE)
    one = slice(s, s + 1)
    y = reference.scan(turned(u), turned(delta), A[one], turned(B), turned(C), D[one], gate, bias[one])
    return y.flip(1) if s else y


def expected_projection(xz: Tensor, layer: Mixer) -> Tensor:
    """x_proj's output in the kernels' order, (2, B, L, 32 + R), in float64."""
    exact = layer.double()
    u = causal_conv(xz.double().chunk(2, dim=-1)[0], *exact.conv_weights())
    parts = [F.linear(u[s], exact.get_parameter(f"x_proj{end}.weight")) for s, end in enumerate(("", "_b"))]
    low, B, C = torch.split(torch.stack(parts), [layer.dt_rank, 16, 16], dim=-1)
    return torch.cat((torch.stack((B, C), dim=-1).flatten(-2), low), dim=-1)


def expected_end(y: Tensor, xz: Tensor, layer: Mixer, residual: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
    """The new residual stream and its RMSNorm, in float64."""
    gated = y.double().sum(0) * F.silu(xz.double().chunk(2, dim=-1)[1])
    summed = residual.double() + F.linear(gated, layer.double().out_proj.weight / 2)
    return summed, F.rms_norm(summed, norm.shape, norm.double(), 1e-5)


def prepared(shape: VimConfig, dtype: torch.dtype) -> tuple[LayerWeights, Mixer]:
    """Return a layer's weights for the kernels, and the mixer that they come from."""
    return prepare(mixer(shape, dtype)), mixer(shape, dtype)


def error(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest expected value; infinite when not finite."""
    assert found.shape == expected.shape
    largest = float((found.double() - expected).abs().max() / expected.abs().max())
    return largest if largest == largest else float("inf")
