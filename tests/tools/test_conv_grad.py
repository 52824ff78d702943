"""The training convolution and its gradient against the mixer's own."""

import pytest
import torch
from torch import nn

from model import mixer
from tools.conv_grad import causal_conv


@pytest.mark.parametrize("reverse", [False, True])
def test_output_and_gradients_equal_the_mixers(reverse: bool) -> None:
    """Both directions, and a sequence longer than the window."""
    torch.manual_seed(3)
    conv = nn.Conv1d(32, 32, 4, groups=32)
    results = []
    for function in (mixer._causal_conv, causal_conv):
        x = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(5)).requires_grad_()
        out = function(x, conv, reverse=reverse)
        results.append((out, *torch.autograd.grad((out * out.detach().cos()).sum(), (x, *conv.parameters()))))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
