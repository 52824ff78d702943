"""Decode and preprocess images as the service does, in this process."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from model.preprocessing.recipe import Preprocess
from service.images.decode import DecodeLimits, Decoder
from service.images.jpeg import Jpegs


def decoder(recipe: Preprocess) -> Callable[[bytes], np.ndarray]:
    """A function from the bytes of a file to the pixels that the service computes."""
    into = Decoder(recipe, DecodeLimits(1 << 30), jpegs=Jpegs())

    def decode(data: bytes) -> np.ndarray:
        out = np.empty((recipe.size, recipe.size, 3), np.uint8)
        into.decode(data, out)
        return out

    return decode
