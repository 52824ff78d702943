"""The photographs of the demo model: read from the zip, cropped into views for training, preprocessed as when serving.

A *view* is one random crop of one training photograph, cut once and kept, so that the teacher's output for it can be
kept too. View 0 is the crop that serving makes.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from model.preprocessing.recipe import Preprocess

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

MEAN, STD = torch.tensor(Preprocess().mean), torch.tensor(Preprocess().std)


@dataclass(frozen=True)
class Photos:
    """Photographs of one split with their class indices."""

    images: list[Image.Image]
    classes: Tensor
    labels: tuple[str, ...]


def read_photos(archive: Path, split: str) -> Photos:
    """Decode every photograph under `split/<class>/` in the zip; classes are numbered in alphabetical order."""
    with zipfile.ZipFile(archive) as files:
        images = [Image.open(io.BytesIO(files.read(name))).convert("RGB") for name in _names(files, split)]
        return Photos(images, *_classes(files, split))


def read_classes(archive: Path, split: str) -> Tensor:
    """Return the class indices of the photographs only."""
    with zipfile.ZipFile(archive) as files:
        return _classes(files, split)[0]


def _names(files: zipfile.ZipFile, split: str) -> list[str]:
    return sorted(n for n in files.namelist() if n.startswith(f"{split}/") and not n.endswith("/"))


def _classes(files: zipfile.ZipFile, split: str) -> tuple[Tensor, tuple[str, ...]]:
    owners = [name.split("/")[1] for name in _names(files, split)]
    labels = tuple(sorted(set(owners)))
    return torch.tensor([labels.index(owner) for owner in owners]), labels


def serving_crop(image: Image.Image, size: int) -> Image.Image:
    """Return the crop that serving makes."""
    return Image.fromarray(Preprocess(size=size)(image))


def random_crop(image: Image.Image, size: int, rng: np.random.Generator, least: float = 0.3) -> Image.Image:
    """Crop a fraction of the area, from `least` to all, at an aspect of 3:4 to 4:3, and scale it to size x size."""
    width, height = image.size
    for _ in range(10):
        area = width * height * rng.uniform(least, 1.0)
        aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if w <= width and h <= height:
            left, top = rng.integers(width - w + 1), rng.integers(height - h + 1)
            box = (float(left), float(top), float(left + w), float(top + h))
            return image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    return serving_crop(image, size)


def mixture(one: Pixels, other: Pixels, rng: np.random.Generator, least: float) -> Pixels:
    """Mix two images (S, S, 3): blend them, or copy a window of the second into the first at the same position.

    The second image's share is between `least` and a half.
    """
    share, side = rng.uniform(least, 0.5), len(one)
    if rng.random() < 0.5:
        blend: Pixels = np.round(one * (1 - share) + other * share).astype(np.uint8)
        return blend
    mixed, edge = one.copy(), round(side * np.sqrt(share))
    top, left = rng.integers(side - edge + 1, size=2)
    mixed[top : top + edge, left : left + edge] = other[top : top + edge, left : left + edge]
    return mixed


def normalised(pixels: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) -> float (B, 3, H, W), with ImageNet's mean and standard deviation."""
    return ((pixels.float() / 255 - MEAN) / STD).permute(0, 3, 1, 2).contiguous()


def serving_batch(images: list[Image.Image], size: int) -> Tensor:
    """Preprocess photographs as the server does: (B, 3, size, size)."""
    return normalised(torch.from_numpy(np.stack([np.asarray(serving_crop(image, size)) for image in images])))


def augment(images: Tensor, rng: torch.Generator) -> Tensor:
    """Augment normalised images (B, 3, H, W): colour, contrast, saturation, slight blur, erased rectangles."""
    return blur_and_erase(jitter_colour(images, rng), rng)


def blur_and_erase(images: Tensor, rng: torch.Generator) -> Tensor:
    """Blur some images slightly and erase a rectangle from some."""
    images = torch.where(_chance(images, 0.1, rng), F.avg_pool2d(images, 3, 1, 1, count_include_pad=False), images)
    return _erase(images, rng)


def _uniform(images: Tensor, low: float, high: float, rng: torch.Generator, channels: int = 1) -> Tensor:
    return torch.empty(len(images), channels, 1, 1).uniform_(low, high, generator=rng)


def _chance(images: Tensor, probability: float, rng: torch.Generator) -> Tensor:
    return torch.rand(len(images), 1, 1, 1, generator=rng) < probability


def jitter_colour(images: Tensor, rng: torch.Generator) -> Tensor:
    """Change contrast, saturation, brightness and tint of each image at random."""
    mean = images.mean((1, 2, 3), keepdim=True)
    images = (images - mean) * _uniform(images, 0.6, 1.4, rng) + mean
    grey = images.mean(1, keepdim=True)
    saturation = torch.where(_chance(images, 0.1, rng), 0.0, _uniform(images, 0.5, 1.5, rng))
    images = grey + (images - grey) * saturation
    return images + _uniform(images, -0.5, 0.5, rng) + _uniform(images, -0.15, 0.15, rng, channels=3)


def _erase(images: Tensor, rng: torch.Generator) -> Tensor:
    count, _, height, width = images.shape
    centre, half = torch.rand(2, count, 1, generator=rng), torch.empty(2, count, 1)
    half = half.uniform_(0.08, 0.22, generator=rng) * (torch.rand(count, 1, generator=rng) < 0.25)
    down = (torch.arange(height) / height - centre[0]).abs() < half[0]
    across = (torch.arange(width) / width - centre[1]).abs() < half[1]
    hole = (down[:, :, None] & across[:, None, :])[:, None]
    return torch.where(hole, torch.randn(count, 3, 1, 1, generator=rng), images)
