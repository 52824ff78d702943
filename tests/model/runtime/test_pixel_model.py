"""The patch embedding of pixels equals normalising them and convolving."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from model.preprocessing.recipe import Preprocess
from model.runtime.pixel_model import PARTS, PixelModel, PixelPatchEmbed
from tests.tiny import CONFIG, tiny_vim


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
    normalised = (pixels.permute(0, 3, 1, 2) / 255 - mean) / std
    expected = proj.float()(normalised).flatten(2).transpose(1, 2)

    assert torch.bfloat16 == found.dtype
    torch.testing.assert_close(found.float(), expected, rtol=0.01, atol=0.01)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float16, 1.5e-3), (torch.bfloat16, 1.2e-2), (torch.float32, 2e-6)])
def test_a_product_in_the_weights_dtype_is_as_exact_as_the_dtype(dtype: torch.dtype, most: float) -> None:
    """On a GPU the product is narrow; its error is that of rounding weights and tokens, also for flat images."""
    proj, recipe = projection(16, 16), Preprocess()
    noise = np.random.default_rng(1).integers(0, 256, (2, 64, 64, 3), np.uint8)
    flat = np.stack([np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 255, np.uint8)])
    pixels = torch.from_numpy(np.concatenate([noise, flat]))
    mean, std = (torch.tensor(three).double() for three in (recipe.mean, recipe.std))
    images = ((pixels.double() / 255 - mean) / std).permute(0, 3, 1, 2)
    expected = projection(16, 16).double()(images).flatten(2).transpose(1, 2)

    found = PixelPatchEmbed(proj.to(dtype), recipe, narrow=True)(pixels)

    assert dtype == found.dtype
    assert float((found.double() - expected).abs().max()) <= most * float(expected.abs().max())


def test_only_the_wanted_parts_are_computed() -> None:
    """Only wanted parts are computed, in a fixed order; a model without a head has no scores."""
    vim = tiny_vim()
    vim.preprocess = Preprocess(CONFIG.image_size[0])
    model, pixels = PixelModel(vim, narrow=False), torch.zeros(2, 64, 64, 3, dtype=torch.uint8)

    with torch.inference_mode():
        assert list(PARTS) == list(model.parts(pixels, {"mean", "cls", "scores"}))
        assert {"mean": (2, 32)} == {part: tuple(row.shape) for part, row in model.parts(pixels, ["mean"]).items()}
