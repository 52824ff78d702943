"""The service's own way from bytes to pixels, in this process."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from model.preprocessing.recipe import Preprocess
from service.images.decode import DecodeLimits
from service.images.decode import decode as decode_into
from service.images.jpeg import Jpegs


def decoder(recipe: Preprocess) -> Callable[[bytes], np.ndarray]:
    """The service's own way from bytes to pixels."""
    jpegs, limits = Jpegs(), DecodeLimits(1 << 30)

    def decode(data: bytes) -> np.ndarray:
        out = np.empty((recipe.size, recipe.size, 3), np.uint8)
        decode_into(data, out, recipe, limits, jpegs=jpegs)
        return out

    return decode
