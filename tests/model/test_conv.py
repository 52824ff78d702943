"""The convolution before the scan equals its formula; the other direction is its mirror image."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.conv import causal_conv


def problem(directions: int, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Seeded x (2, L, 6), weight (S, 6, 4) and bias (S, 6) in float64."""
    generator = torch.Generator().manual_seed(tokens)
    shapes = ((2, tokens, 6), (directions, 6, 4), (directions, 6))
    x, weight, bias = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return x, weight, bias


def by_hand(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute the formula of `model.conv` for direction 0."""
    width = weight.shape[-1]
    out = torch.empty_like(x)
    for t in range(x.shape[1]):
        past = [k for k in range(width) if t - width + 1 + k >= 0]
        out[:, t] = bias + sum(weight[:, k] * x[:, t - width + 1 + k] for k in past)
    return out * torch.sigmoid(out)


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 9])
def test_is_the_formula_in_each_direction(directions: int, tokens: int) -> None:
    """Both directions equal the formula, also for sequences shorter than the kernel."""
    x, weight, bias = problem(directions, tokens)
    found = causal_conv(x, weight, bias)

    torch.testing.assert_close(found[0], by_hand(x, weight[0], bias[0]))
    if directions == 2:
        torch.testing.assert_close(found[1], by_hand(x.flip(1), weight[1], bias[1]).flip(1))


def test_no_bias_is_a_bias_of_zero() -> None:
    """Without a bias the result is that of a bias of zero."""
    x, weight, bias = problem(2, 5)

    torch.testing.assert_close(causal_conv(x, weight, None), causal_conv(x, weight, 0 * bias))
