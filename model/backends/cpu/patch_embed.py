"""Patch embedding of uint8 pixels on a CPU as one matrix product.

The reference takes five passes over an image (ToTensor, Normalize, and a convolution whose windows are patches). All of
them are linear: here the product's weights include the scale of each channel, and its bias the mean. The results are
equal up to rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.preprocessing.recipe import Preprocess


class PixelPatchEmbed:
    """A patch embedding that takes uint8 pixels. Create it from weights in their final dtype."""

    def __init__(self, projection: nn.Conv2d, preprocess: Preprocess) -> None:
        self._side, self._stride = projection.kernel_size[0], projection.stride[0]
        self._dtype = projection.weight.dtype
        mean = torch.tensor(preprocess.mean, dtype=torch.float64)[:, None, None]
        std = torch.tensor(preprocess.std, dtype=torch.float64)[:, None, None]
        weight = projection.weight.detach().double() / std
        bias = 0 if projection.bias is None else projection.bias.detach().double()
        wide = torch.promote_types(self._dtype, torch.float32)
        self._bias = (bias - (weight * mean).sum((1, 2, 3))).to(wide)
        # (side * side * C, D), in the order of a patch's pixels in the image
        self._weight = (weight / 255).permute(2, 3, 1, 0).flatten(0, 2).contiguous().to(wide)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Pixels (B, H, W, C) uint8 -> patch tokens (B, M, D)."""
        # (B, rows, columns, C, side, side), a view
        patches = pixels.unfold(1, self._side, self._stride).unfold(2, self._side, self._stride)
        images, rows, columns = patches.shape[:3]
        numbers = patches.permute(0, 1, 2, 4, 5, 3).to(self._weight.dtype, memory_format=torch.contiguous_format)
        tokens = torch.addmm(self._bias, numbers.reshape(-1, len(self._weight)), self._weight)
        return tokens.view(images, rows * columns, -1).to(self._dtype)
