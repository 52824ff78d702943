"""Fashion-MNIST as additional training data: small grey garments, enlarged and tinted, whose class is known.

MIT licence, Debian's `dataset-fashion-mnist`. Only its training images are used; the shipped samples are from its test
images.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from training.data import Pixels, blur_and_erase, jitter_colour, normalised

# Fashion-MNIST's class number -> the demo model's class; 8, a bag, has none.
NAMES = {
    0: "t-shirt", 1: "pants", 2: "longsleeve", 3: "dress", 4: "outwear", 5: "shoes", 6: "shirt", 7: "shoes", 9: "shoes",
}  # fmt: skip


class FashionMnist:
    """The training images that belong to one of the demo model's classes."""

    def __init__(self, dataset: Path, labels: tuple[str, ...]) -> None:
        numbers = read_idx(dataset / "train-labels-idx1-ubyte.gz")
        known = numbers != 8
        self._pixels = read_idx(dataset / "train-images-idx3-ubyte.gz")[known]
        self._classes = torch.tensor([labels.index(NAMES[int(n)]) for n in numbers[known]])

    def batch(self, count: int, size: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return images (count, 3, size, size), normalised and jittered, and their classes (count,)."""
        chosen = torch.randint(len(self._classes), (count,), generator=rng)
        seeded = np.random.default_rng(int(torch.randint(2**31, (1,), generator=rng)))
        pixels = np.stack([_enlarged(self._pixels[i], size, seeded) for i in chosen.tolist()])
        images = normalised(torch.from_numpy(pixels))
        flip = torch.rand(count, 1, 1, 1, generator=rng) < 0.5
        images = jitter_colour(torch.where(flip, images.flip(3), images), rng)
        return blur_and_erase(images, rng), self._classes[chosen]


def _enlarged(grey: Pixels, size: int, rng: np.random.Generator) -> Pixels:
    """Invert a negative of 28 x 28 to dark on white, at a random size and position on a background of one colour."""
    side = round(size * rng.uniform(0.7, 1.0))
    large = (
        np.asarray(Image.fromarray(grey).resize((side, side), Image.Resampling.BICUBIC), np.float32)[..., None] / 255
    )
    canvas = np.zeros((size, size, 1), np.float32)
    top, left = rng.integers(size - side + 1, size=2)
    canvas[top : top + side, left : left + side] = large
    if rng.random() < 0.4:
        return np.repeat(np.round(255 * (1 - canvas)).astype(np.uint8), 3, axis=2)
    garment, ground = rng.uniform(0, 255, 3), rng.uniform(100, 255, 3)
    there = np.minimum(canvas * 4, 1)
    tinted: Pixels = np.clip(ground * (1 - there) + garment * (1.2 - 0.6 * canvas) * there, 0, 255).astype(np.uint8)
    return tinted


def read_idx(path: Path) -> Pixels:
    """Read an array in MNIST's format: two zero bytes, type, number of axes, their lengths, the values."""
    data = gzip.decompress(path.read_bytes())
    shape = np.frombuffer(data, ">u4", data[3], 4)
    values: np.ndarray[Any, np.dtype[np.uint8]] = np.frombuffer(data, np.uint8, offset=4 + 4 * data[3])
    return values.reshape(tuple(int(n) for n in shape))
