"""The training convolution and its gradient against the model's own."""

import pytest
import torch

from model.conv import causal_conv as plain
from tools.conv_grad import causal_conv


@pytest.mark.parametrize("directions", [1, 2])
def test_output_and_gradients_equal_the_models(directions: int) -> None:
    """One direction and both, and a sequence longer than the window."""
    results = []
    for function in (plain, causal_conv):
        generator = torch.Generator().manual_seed(5)
        shapes = ((2, 9, 32), (directions, 32, 4), (directions, 32))
        x, weight, bias = (torch.randn(shape, generator=generator).requires_grad_() for shape in shapes)
        out = function(x, weight, bias)
        results.append((out, *torch.autograd.grad((out * out.detach().cos()).sum(), (x, weight, bias))))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
