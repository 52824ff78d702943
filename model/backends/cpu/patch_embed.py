"""uint8 pixels -> patch tokens on a CPU, as one matrix product.

What the reference does in five passes over an image (ToTensor, Normalize, a convolution whose windows are patches) is
linear: the product's weights take in the scale of each channel, its bias the mean. Equal to rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.preprocessing.recipe import Preprocess


class PixelPatchEmbed:
    """A patch embedding for pixels as they are decoded. Made from weights in their final dtype."""

    def __init__(self, projection: nn.Conv2d, preprocess: Preprocess) -> None:
        self._side, self._stride = projection.kernel_size[0], projection.stride[0]
        self._dtype = projection.weight.dtype
        mean = torch.tensor(preprocess.mean, dtype=torch.float64)[:, None, None]
        std = torch.tensor(preprocess.std, dtype=torch.float64)[:, None, None]
        weight = projection.weight.detach().double() / std
        bias = 0 if projection.bias is None else projection.bias.detach().double()
        wide = torch.promote_types(self._dtype, torch.float32)
        self._bias = (bias - (weight * mean).sum((1, 2, 3))).to(wide)
        # (side * side * C, D), in the order in which a patch's pixels lie in the image
        self._weight = (weight / 255).permute(2, 3, 1, 0).flatten(0, 2).contiguous().to(wide)

    def __call__(self, pixels: Tensor) -> Tensor:
        """(B, H, W, C) uint8 -> (B, M, D)."""
        # (B, rows, columns, C, side, side), a view
        patches = pixels.unfold(1, self._side, self._stride).unfold(2, self._side, self._stride)
        images, rows, columns = patches.shape[:3]
        numbers = patches.permute(0, 1, 2, 4, 5, 3).to(self._weight.dtype, memory_format=torch.contiguous_format)
        tokens = torch.addmm(self._bias, numbers.reshape(-1, len(self._weight)), self._weight)
        return tokens.view(images, rows * columns, -1).to(self._dtype)
