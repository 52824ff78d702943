"""The images on which a dtype is compared with float32: noise, fields of colour, extremes, and real pictures."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from model.preprocessing.recipe import Preprocess
from model.shipped import shipped

GRAINS = 8


def calibration_pixels(recipe: Preprocess) -> Tensor:
    """Return pixels as the model receives them, uint8 (n, size, size, 3), the same at every call.

    They are seeded fields from fine noise to large patches of colour, flat black and white, a checkerboard, stripes,
    and the sample pictures that come with this project, where the recipe resizes them.
    """
    size = recipe.size
    return torch.cat((_fields(size), _extremes(size), *_pictures(recipe)))


def _fields(size: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    fields = []
    for index in range(GRAINS):
        cells = max(2, size >> index)
        coarse = torch.randn(1, 3, cells, cells, generator=generator)
        fields.append(F.interpolate(coarse, (size, size), mode="bilinear", align_corners=False))
    return (128 + 64 * torch.cat(fields)).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def _extremes(size: int) -> Tensor:
    black, odd = torch.zeros(size, size, dtype=torch.bool), torch.arange(size) % 2 == 1
    rows = odd[:, None].expand(size, size)
    images = torch.stack((black, ~black, rows ^ rows.mT, rows, rows.mT))
    return images[..., None].expand(*images.shape, 3).to(torch.uint8) * 255


def _pictures(recipe: Preprocess) -> list[Tensor]:
    if recipe.resize is None:
        return []
    return [torch.from_numpy(recipe.read(path))[None] for path in sorted(shipped("samples").glob("*.png"))]
