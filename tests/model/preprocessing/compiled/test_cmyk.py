"""CMYK pixels are converted to RGB as Pillow converts them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from model.preprocessing.compiled.cmyk import CmykToRgb

CONVERT = CmykToRgb()


def test_every_ink_with_every_black_is_as_pillow_has_it() -> None:
    """All 65,536 pairs of ink and black agree in each of the three channels.

    A file stores the light that an ink transmits.
    """
    values = np.arange(256, dtype=np.uint8)
    stored = np.empty((256, 256, 4), np.uint8)
    stored[...] = values[:, None, None]
    stored[..., 1] = 255 - stored[..., 1]
    stored[..., 2] ^= 0x55
    stored[..., 3] = values
    expected = np.asarray(Image.fromarray(255 - stored, "CMYK").convert("RGB"))

    CONVERT(stored.reshape(-1))

    np.testing.assert_array_equal(stored.reshape(-1)[: expected.size], expected.reshape(-1))


def test_nothing_behind_the_pixels_is_touched() -> None:
    """Only whole blocks within the given memory are written."""
    memory = np.full(5 * 64, 200, np.uint8)

    CONVERT(memory[64:256])

    assert (memory[:64] == 200).all()
    assert (memory[64 : 64 + 144] == 157).all()
    assert (memory[256:] == 200).all()


def test_memory_that_would_be_overrun_is_refused() -> None:
    """Memory that is not contiguous or not in whole blocks is refused before the kernel runs."""
    for memory in (np.zeros(65, np.uint8), np.zeros(256, np.uint8)[::2]):
        with pytest.raises(ValueError, match="whole blocks"):
            CONVERT(memory)
