"""A model that takes uint8 pixels and returns the parts of an answer: what both runners and the choice of dtype run.

The reference takes five passes over an image (ToTensor, Normalize, and a convolution whose windows are patches). All of
them are linear: here they are one matrix product, whose weights include the scale of each channel, and its bias the
mean. The results are equal up to rounding.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import torch
from torch import Tensor, nn

from model.preprocessing.recipe import Preprocess
from model.vim import Vim

Part = Literal["scores", "cls", "mean"]
PARTS: tuple[Part, ...] = ("scores", "cls", "mean")
CENTRE = 128.0


class PixelPatchEmbed:
    """A patch embedding that takes uint8 pixels. Create it from weights in their final dtype on their final device.

    The product is at least float32, for a CPU. With `narrow` it is in the dtype of the weights, for a GPU: pixels minus
    128 are exact in float16 and bfloat16, and make the bias small, so that rounding it costs little.
    """

    def __init__(self, projection: nn.Conv2d, preprocess: Preprocess, *, narrow: bool = False) -> None:
        self._side, self._stride = projection.kernel_size[0], projection.stride[0]
        self._dtype, device = projection.weight.dtype, projection.weight.device
        compute = self._dtype if narrow else torch.promote_types(self._dtype, torch.float32)
        self._centre = CENTRE if narrow else 0.0
        self._scale = CENTRE if narrow else 1.0  # weights as large as the convolution's have no subnormal numbers
        mean = torch.tensor(preprocess.mean, dtype=torch.float64, device=device)[:, None, None]
        std = torch.tensor(preprocess.std, dtype=torch.float64, device=device)[:, None, None]
        weight = projection.weight.detach().double() / std
        bias = 0 if projection.bias is None else projection.bias.detach().double()
        self._bias = (bias + (weight * (self._centre / 255 - mean)).sum((1, 2, 3))).to(compute)
        # (side * side * C, D), in the order of a patch's pixels in the image
        self._weight = (weight / 255 * self._scale).permute(2, 3, 1, 0).flatten(0, 2).contiguous().to(compute)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Pixels (B, H, W, C) uint8 -> patch tokens (B, M, D)."""
        # (B, rows, columns, C, side, side), a view
        patches = pixels.unfold(1, self._side, self._stride).unfold(2, self._side, self._stride)
        images, rows, columns = patches.shape[:3]
        numbers = self._numbers(patches.permute(0, 1, 2, 4, 5, 3)).view(-1, len(self._weight))
        tokens = torch.addmm(self._bias, numbers, self._weight, alpha=1 / self._scale)
        return tokens.view(images, rows * columns, -1).to(self._dtype)

    def _numbers(self, patches: Tensor) -> Tensor:
        """Pixels (...) uint8 -> the same minus the centre, contiguous; one pass over the memory."""
        if not self._centre:
            return patches.to(self._weight.dtype, memory_format=torch.contiguous_format)
        return torch.sub(patches, self._centre, out=patches.new_empty(patches.shape, dtype=self._weight.dtype))


class PixelModel:
    """A model with a patch embedding of pixels. Create it when the model is final: dtype, device and fused layers."""

    def __init__(self, vim: Vim, *, narrow: bool) -> None:
        self.vim = vim
        self._embed = PixelPatchEmbed(vim.patch_embed.proj, vim.preprocess, narrow=narrow)

    def tokens(self, pixels: Tensor) -> Tensor:
        """Pixels (n, H, W, 3) uint8 -> all tokens after the final norm (n, L, D)."""
        return self.vim.forward_patches(self._embed(pixels))

    def parts(self, pixels: Tensor, wanted: Collection[Part]) -> dict[Part, Tensor]:
        """Pixels (n, H, W, 3) uint8 -> the wanted parts in the order of PARTS, float32 (n, width)."""
        tokens = self.tokens(pixels)
        features = self.vim.pool(tokens)
        found: dict[Part, Tensor] = {}
        if "scores" in wanted:
            found["scores"] = self.vim.scores(features)
        if "cls" in wanted:
            found["cls"] = features.float()
        if "mean" in wanted:
            found["mean"] = self.vim.mean_of_patches(tokens)
        return found
