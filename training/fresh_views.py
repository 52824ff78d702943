"""Fresh views: cut, mixed and shown to the teacher while the student learns, so that no view is used twice.

The inputs of teacher and student differ only in size, blur and erased rectangles ("a good teacher is patient and
consistent", Beyer et al. 2022). With 3,068 photographs most of the variety comes from mixtures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from training import teacher as teachers
from training.data import MEAN, STD, Photos, Pixels, blur_and_erase, jitter_colour, mixture, normalised, random_crop
from training.recipe import Style
from training.views import ViewBatch

SIZE = 144  # px of the teacher's input; it was fine-tuned at 128 px and is more accurate at 144 px
LEAST_SHARE = 0.1  # of the other photograph in a mixture
_TURNED, _DEGREES = 0.3, 12.0


class FreshViews:
    """Draw views of the training photographs and run the teacher on them."""

    def __init__(self, teacher: Any, photos: Photos, axes: Path, style: Style) -> None:
        self._teacher, self._photos, self._style = teacher, photos, style
        self._axes = load_file(axes)
        self._by_class = [np.flatnonzero(photos.classes.numpy() == c) for c in range(len(photos.labels))]
        self._middle: Tensor | None = None
        teacher._blocks[teachers.MIDDLE_BLOCK].register_forward_hook(self._keep)
        self._level = self._channels()

    def _keep(self, _block: Any, _inputs: Any, output: Tensor) -> None:
        self._middle = output.float()

    def batch(self, chosen: Tensor, size: int, rng: torch.Generator) -> ViewBatch:
        """Return new views of these photographs, at `size` px for the student."""
        seed = int(torch.randint(2**31, (1,), generator=rng))
        pixels, mixed = self._cut(chosen.tolist(), np.random.default_rng(seed))
        images = normalised(torch.from_numpy(pixels))
        flip = torch.rand(len(chosen), 1, 1, 1, generator=rng) < 0.5
        images = jitter_colour(torch.where(flip, images.flip(3), images), rng)
        logits, features, middle = self._ask(images)
        pooled = (features.mean((1, 2)) - self._axes["pooled_mean"]) @ self._axes["pooled"]
        maps = (features - self._axes["map_mean"]) @ self._axes["map"]
        mean, deviation = self._level
        shown = blur_and_erase(_scaled(images, size), rng)
        return ViewBatch(shown, logits, pooled, maps, torch.from_numpy(mixed), (middle - mean) / deviation)

    def _cut(self, chosen: list[int], rng: np.random.Generator) -> tuple[Pixels, np.ndarray[Any, np.dtype[np.bool_]]]:
        pixels = np.stack([self._view(i, rng) for i in chosen])
        mixed = rng.random(len(chosen)) < self._style.mixtures
        for i in np.flatnonzero(mixed):
            # all classes are equally frequent, because the rare ones have the lowest accuracy
            other = self._view(int(rng.choice(self._by_class[rng.integers(len(self._by_class))])), rng)
            pixels[i] = mixture(pixels[i], other, rng, LEAST_SHARE)
        return pixels, mixed

    def _view(self, number: int, rng: np.random.Generator) -> Pixels:
        image = self._photos.images[number]
        if rng.random() < _TURNED:
            angle = rng.uniform(-_DEGREES, _DEGREES)
            image = image.rotate(angle, Image.Resampling.BICUBIC, fillcolor=image.getpixel((1, 1)))
        return np.asarray(random_crop(image, SIZE, rng, self._style.least))

    @torch.inference_mode()
    def _ask(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits, last features (B, h, w, 1280) and features after half of the blocks (B, h, w, channels)."""
        seen = (images * STD.view(3, 1, 1) + MEAN.view(3, 1, 1) - teachers.MEAN) / teachers.STD
        with torch.autocast("cpu", torch.bfloat16):
            features = self._teacher.extract_features(seen.contiguous(memory_format=torch.channels_last)).float()
        assert self._middle is not None
        logits = self._teacher._fc(features.mean((2, 3)))
        return logits, features.permute(0, 2, 3, 1), self._middle.permute(0, 2, 3, 1)

    def _channels(self) -> tuple[Tensor, Tensor]:
        """Return mean and deviation of each channel of the middle features, over some of the photographs."""
        rng = np.random.default_rng(0)
        pixels = np.stack([self._view(i, rng) for i in range(0, len(self._photos.images), 16)])
        middle = torch.cat([self._ask(part)[2] for part in torch.split(normalised(torch.from_numpy(pixels)), 32)])
        return middle.mean((0, 1, 2)), middle.std((0, 1, 2)) + 1e-3


def _scaled(images: Tensor, size: int) -> Tensor:
    if size == images.shape[-1]:
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)
