"""The patch embedding of pixels equals normalising them and convolving."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from model.backends.cpu.patch_embed import PixelPatchEmbed
from model.preprocessing.recipe import Preprocess
from model.runtime.runner import normalised


def projection(side: int, stride: int, *, bias: bool = True) -> nn.Conv2d:
    """Return a seeded float32 convolution."""
    torch.manual_seed(0)
    return nn.Conv2d(3, 24, side, stride=stride, bias=bias).requires_grad_(False)


@pytest.mark.parametrize(("side", "stride"), [(16, 16), (16, 8), (4, 4), (7, 5)])
@pytest.mark.parametrize("images", [1, 3])
def test_tokens_are_those_of_the_reference(side: int, stride: int, images: int) -> None:
    """Tokens equal ToTensor, Normalize and the convolution in float64, also for overlapping patches."""
    proj, recipe = projection(side, stride), Preprocess(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    pixels = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (images, 39, 50, 3), np.uint8))
    found = PixelPatchEmbed(proj, recipe)(pixels)
    mean, std = (torch.tensor(three).double()[:, None, None] for three in (recipe.mean, recipe.std))
    expected = proj.double()((pixels.permute(0, 3, 1, 2).double() / 255 - mean) / std).flatten(2).transpose(1, 2)

    assert torch.float32 == found.dtype
    # The reference's five passes in float32 have errors of the same size.
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1.5e-6 * float(expected.abs().max()))


def test_an_image_gives_the_same_alone_and_among_others() -> None:
    """An image's tokens are the same alone and in a batch, up to rounding."""
    embed = PixelPatchEmbed(projection(16, 16), Preprocess())
    pixels = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (5, 64, 64, 3), np.uint8))

    torch.testing.assert_close(torch.cat([embed(one[None]) for one in pixels]), embed(pixels), rtol=0, atol=2e-6)


def test_without_a_bias_and_in_bfloat16() -> None:
    """The product is computed in float32, and its result has the dtype of the weights."""
    proj = projection(16, 16, bias=False).to(torch.bfloat16)
    pixels = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (2, 64, 64, 3), np.uint8))
    recipe = Preprocess()
    found = PixelPatchEmbed(proj, recipe)(pixels)
    mean, std = (torch.tensor(three)[:, None, None] for three in (recipe.mean, recipe.std))
    expected = proj.float()(normalised(pixels, mean, std)).flatten(2).transpose(1, 2)

    assert torch.bfloat16 == found.dtype
    torch.testing.assert_close(found.float(), expected, rtol=0.01, atol=0.01)
