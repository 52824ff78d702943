"""The training convolution agrees with the model's own, in outputs and gradients."""

import torch

from model.conv import causal_conv
from training.conv_grad import conv_backward, conv_forward


def test_output_and_gradients_equal_the_models() -> None:
    """Output and gradients equal the model's in both directions, also for sequences longer than the window."""
    make = torch.Generator().manual_seed(5)
    shapes = ((2, 9, 32), (2, 32, 4), (2, 32))
    x, weight, bias = (torch.randn(shape, generator=make).requires_grad_() for shape in shapes)
    expected = causal_conv(x, weight, bias)
    weights = expected.detach().cos()
    taps = weight.detach().transpose(1, 2).contiguous()

    actual = conv_forward(x.detach(), taps, bias.detach())
    dx, d_taps, d_bias = conv_backward(x.detach(), taps, bias.detach(), weights)

    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    grads = torch.autograd.grad((expected * weights).sum(), (x, weight, bias))
    for ours, theirs in zip((dx, d_taps.transpose(1, 2), d_bias), grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
