"""The training layer, with its own gradient, equals the model's layer differentiated by torch."""

import pytest
import torch
from torch import Tensor

from model.backends.reference import scan
from model.config import VimConfig
from model.vim import Layer, Vim
from training.layer_grad import layer_step
from training.student import initialise


def _layer() -> Layer:
    """Return the first layer of a small Vim with noise on its weights, so that none is zero or equal."""
    torch.manual_seed(0)
    vim = Vim(VimConfig(image_size=(64, 64), embed_dim=32, depth=2, d_state=4, num_classes=3), scan)
    initialise(vim)
    layer = vim.layers[0]
    assert isinstance(layer, Layer)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return layer


@pytest.mark.parametrize(("product", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_outputs_and_all_gradients_equal_the_models(product: torch.dtype, tolerance: float) -> None:
    """Both outputs agree, and the gradients of the hidden tokens, the residual stream and every parameter."""
    layer = _layer()
    hidden, residual, weight_one, weight_two = torch.randn(4, 3, 17, 32).unbind()
    leaves = [hidden.requires_grad_(), residual.requires_grad_(), *layer.parameters()]

    def outputs_and_grads(mixed: Tensor, stream: Tensor) -> list[Tensor]:
        grads = torch.autograd.grad((mixed * weight_one).sum() + (stream * weight_two).sum(), leaves)
        return [mixed, stream, *grads]

    expected = outputs_and_grads(*layer(hidden, residual))
    actual = outputs_and_grads(*layer_step(layer, hidden, residual, product))

    for ours, theirs in zip(actual, expected, strict=True):
        assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()
