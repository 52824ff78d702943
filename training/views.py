"""The views: random crops of every training photograph, cut once and kept with the teacher's outputs for them.

Teacher and student receive the same view. Every third view is a mixture of two photographs, half of them blended and
half with a window of the other; only the teacher's output is known for it. View 0 is the crop that serving makes.
*Wide* views show most of one photograph, as serving does, at a higher resolution; the last phase uses them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.data import Photos, Pixels, augment, mixture, random_crop, serving_crop
from training.data import normalised as normalised_as_served
from training.teacher import SIZE, normalised

STORED = 120  # px; resolution of a stored view
WIDE = 136  # px, the same of a wide view
WIDE_LEAST = 0.6  # of the area
POOLED_WIDTH = 256
MAP_WIDTH = 64
BATCH = 32
LEAST_SHARE = 0.15  # of the other photograph in a mixture
MARGIN = 1.06  # views are larger than the image by this factor, so that the window can shift
AXES = "axes.safetensors"


@dataclass(frozen=True)
class ViewBatch:
    """A batch of views as the student receives them, and the teacher's outputs for each."""

    images: Tensor  # (B, 3, H, W), normalised and jittered
    logits: Tensor  # (B, classes)
    pooled: Tensor  # (B, POOLED_WIDTH), centred
    maps: Tensor  # (B, side, side, MAP_WIDTH)
    mixed: Tensor  # (B,) bool: mixtures, whose class is undefined
    middle: Tensor | None = None  # (B, side, side, MIDDLE_WIDTH), normalised: middle features, 16 px per cell


@dataclass(frozen=True)
class Views:
    """Every view of every training photograph and the teacher's outputs for it. First axis: the view."""

    pixels: Tensor  # (K, n, H, W, 3) uint8
    logits: Tensor  # (K, n, classes)
    pooled: Tensor  # (K, n, POOLED_WIDTH), centred
    maps: Tensor  # (K, n, 3, 3, MAP_WIDTH), unit variance on average
    wide: bool

    def mixed(self, view: Tensor) -> Tensor:
        """Return which of these views (any shape) are mixtures, for which only the teacher's output is known."""
        return (view % 3 == 2) & (not self.wide)

    def batch(self, chosen: Tensor, size: int, rng: torch.Generator) -> ViewBatch:
        """Return one random view of each of these photographs, at `size` px."""
        count = len(chosen)
        view = torch.randint(len(self.pixels), (count,), generator=rng)
        images = normalised_as_served(_windows(self.pixels[view, chosen], size, rng))
        maps, pooled, logits = (kept[view, chosen].float() for kept in (self.maps, self.pooled, self.logits))
        flip = torch.rand(count, 1, 1, 1, generator=rng) < 0.5
        images, maps = torch.where(flip, images.flip(3), images), torch.where(flip, maps.flip(2), maps)
        return ViewBatch(augment(images, rng), logits, pooled, maps, self.mixed(view))


def _windows(pixels: Tensor, size: int, rng: torch.Generator) -> Tensor:
    """Cut a window of size x size at a random position from each image (B, H, W, 3).

    The shift is too small to change the feature map.
    """
    corners = torch.randint(pixels.shape[1] - size + 1, (len(pixels), 2), generator=rng).tolist()
    windows = [p[top : top + size, left : left + size] for p, (top, left) in zip(pixels, corners, strict=True)]
    return torch.stack(windows)


def write_views(cache: Path, teacher: Any, photos: Photos, numbers: range, wide_from: int, seed: int) -> None:
    """Cut the views that the cache does not have, run the teacher on each, and write `view_N.npz`.

    View 0 must come first, because all views use its principal axes.
    """
    for number in numbers:
        path = cache / f"view_{number:02d}.npz"
        if path.exists():
            continue
        wide = number >= wide_from
        large = cut(photos, number, seed, wide)
        logits, features = _answers(teacher, _resized(large, SIZE))
        axes = principal_axes(cache / AXES, features)
        pooled = (features.mean((1, 2)) - axes["pooled_mean"]) @ axes["pooled"]
        maps = (features - axes["map_mean"]) @ axes["map"]
        small = _resized(large, WIDE if wide else STORED)
        with path.with_suffix(".part").open("wb") as file:
            np.savez(file, pixels=small, logits=logits, pooled=pooled.half(), maps=maps.half())
        path.with_suffix(".part").rename(path)
        print(f"view {number}: the teacher is right about {_agreement(logits, photos):.1%}", flush=True)


def _agreement(logits: Tensor, photos: Photos) -> float:
    return (logits.argmax(1) == photos.classes).float().mean().item()


def scale_views(cache: Path, numbers: range, size: int) -> None:
    """Write these views, scaled to size x size, to one file that can be memory-mapped."""
    path = _together(cache, numbers, size)
    if path.exists():
        return
    stored = [np.load(cache / f"view_{number:02d}.npz") for number in numbers]
    content = {
        "pixels": torch.stack([_scaled(torch.from_numpy(view["pixels"]), size) for view in stored]),
        **{k: torch.stack([torch.from_numpy(view[k]) for view in stored]) for k in ("logits", "pooled", "maps")},
    }
    torch.save(content, path.with_suffix(".part"))
    path.with_suffix(".part").rename(path)


def read_views(cache: Path, numbers: range, size: int, wide: bool) -> Views:
    """Map the file that `scale_views` wrote into memory."""
    content = torch.load(_together(cache, numbers, size), mmap=True, weights_only=True)
    return Views(**content, wide=wide)


def _together(cache: Path, numbers: range, size: int) -> Path:
    return cache / f"views_{numbers.start}_to_{numbers.stop - 1}_{size}px.pt"


def cut(photos: Photos, number: int, seed: int, wide: bool = False) -> Pixels:
    """Return view `number` of every photograph (n, SIZE, SIZE, 3), or WIDE for SIZE; the same for the same seed."""
    rng = np.random.default_rng((seed, number))
    if wide:
        return np.stack([np.asarray(random_crop(image, WIDE, rng, WIDE_LEAST)) for image in photos.images])
    if number == 0:
        return np.stack([np.asarray(serving_crop(image, SIZE)) for image in photos.images])
    pixels = np.stack([np.asarray(random_crop(image, SIZE, rng)) for image in photos.images])
    return _mixture(pixels, rng) if number % 3 == 2 else pixels


def _mixture(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Mix each image with another."""
    others = pixels[rng.permutation(len(pixels))]
    return np.stack([mixture(one, other, rng, LEAST_SHARE) for one, other in zip(pixels, others, strict=True)])


def _resized(pixels: Pixels, size: int) -> Pixels:
    if size == pixels.shape[1]:
        return pixels
    return np.stack([np.asarray(Image.fromarray(p).resize((size, size))) for p in pixels])


def _scaled(pixels: Tensor, size: int) -> Tensor:
    if size == pixels.shape[1]:
        return pixels
    return torch.cat([
        F.interpolate(part.permute(0, 3, 1, 2), (size, size), mode="bilinear", antialias=True).permute(0, 2, 3, 1)
        for part in torch.split(pixels, 512)
    ])  # fmt: skip


@torch.inference_mode()
def _answers(teacher: Any, pixels: Pixels) -> tuple[Tensor, Tensor]:
    """Return logits (n, classes) and last feature maps (n, 3, 3, 1280)."""
    logits, maps = [], []
    for batch in torch.split(torch.from_numpy(pixels), BATCH):
        with torch.autocast("cpu", torch.bfloat16):
            features = teacher.extract_features(normalised(batch))
        features = features.float()
        logits.append(teacher._fc(features.mean((2, 3))))
        maps.append(features.permute(0, 2, 3, 1))
    return torch.cat(logits), torch.cat(maps)


def principal_axes(path: Path, features: Tensor) -> dict[str, Tensor]:
    """Return the mean and principal axes of pooled features and map cells, scaled to unit average variance.

    They are computed from `features` (n, side, side, W) and written to `path` if it does not exist, else read from it.
    """
    if not path.exists():
        pooled_mean, pooled = _principal(features.mean((1, 2)), POOLED_WIDTH)
        map_mean, cells = _principal(features.flatten(0, 2), MAP_WIDTH)
        arrays = {"pooled_mean": pooled_mean, "pooled": pooled, "map_mean": map_mean, "map": cells}
        save_file(arrays, path)
    return load_file(path)


def _principal(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Rows (n, W) -> mean (W,) and axes (W, count)."""
    mean = rows.mean(0)
    centred = rows - mean
    variances, vectors = torch.linalg.eigh(centred.T @ centred / len(rows))
    axes = vectors.flip(1)[:, :count] / variances.flip(0)[:count].mean().sqrt()
    return mean, axes.contiguous()
