"""Synthetic JPEG photographs that are always the same: soft colour patches with a little noise."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def photograph(seed: int, side: tuple[int, int] = (640, 480), quality: int = 88) -> bytes:
    """A photograph of `side` (width, height), by default about as large as a phone's thumbnail."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3), np.uint8)).resize(side, Image.Resampling.BICUBIC)
    noisy = np.asarray(coarse).astype(np.int16) + generator.integers(-8, 9, (side[1], side[0], 3))
    encoded = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(encoded, "JPEG", quality=quality)
    return encoded.getvalue()
