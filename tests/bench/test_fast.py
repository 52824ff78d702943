"""The effect of `VIM_DECODE=fast` is measured by decoding the same files in both ways."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

import model
from bench.fast import compare, enlarged
from service.images.jpeg import encode

ROOT = Path(__file__).parents[2]


def photograph(seed: int) -> bytes:
    """A JPEG of noise of 200 x 160 pixels."""
    return encode(np.random.default_rng(seed).integers(0, 256, (160, 200, 3), np.uint8))


def test_small_files_are_the_same_and_large_ones_nearly() -> None:
    """Files with a short side of 160 px give equal pixels, and those with 480 px similar answers."""
    network = model.load(ROOT / "models" / "demo", device="cpu")
    small = [photograph(seed) for seed in range(3)]
    large = [enlarged(data, 480) for data in small]

    same, near = compare(network, small, [0, None, 1]), compare(network, large, [0, None, 1])

    assert Image.open(io.BytesIO(large[0])).size == (600, 480)
    assert (same["files"], same["with_a_class"], same["same_answer"]) == (3, 2, 1.0)
    assert same["right"]["exact"] == same["right"]["fast"]
    assert same["cosine"]["least"] == 1.0
    assert 0.9 < near["cosine"]["least"] < 1.0
