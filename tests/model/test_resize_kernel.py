"""The compiled resize gives Pillow's pixels, or says beforehand that it will not try."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from model.preprocess import Preprocess
from model.resize import Axis
from model.resize_kernel import Resize, can

RESIZE = Resize()


def noise(width: int, height: int) -> np.ndarray:
    """Seeded pixels (H, W, 4) in which every neighbour differs."""
    return np.random.default_rng(width * height).integers(0, 256, (height, width, 4), np.uint8)


@pytest.mark.parametrize(
    "size", [(640, 480), (480, 641), (224, 224), (256, 300), (37, 41), (12, 9), (1500, 700), (2048, 1536), (230, 900)]
)
@pytest.mark.parametrize("side", [224, 65])
def test_the_pixels_are_those_of_pillow(size: tuple[int, int], side: int) -> None:
    """Shrunk and enlarged, lying and standing, a crop whose width is no multiple of four."""
    recipe = Preprocess(size=side)
    pixels = noise(*size)
    axes = recipe.axes(size)
    expected = recipe(Image.fromarray(np.ascontiguousarray(pixels[..., :3])))

    if can(*axes):
        np.testing.assert_array_equal(recipe.padded(RESIZE(pixels, *axes), *axes), expected)
    else:
        assert min(size) < 16 or any(axis.outgrown for axis in axes)


def test_shapes_that_are_mostly_thrown_away_are_left_alone() -> None:
    """1 x 1000 becomes 256 x 256,000, of which 224 x 224 are wanted: `model.resize` knows how."""
    assert not can(*Preprocess().axes((1, 1000)))
    assert can(*Preprocess().axes((640, 480)))


def test_pixels_that_are_not_the_axes_source_are_refused() -> None:
    """The kernel itself checks nothing."""
    across = down = Axis(100, 50, 0, 50)

    with pytest.raises(ValueError, match="cannot be resized"):
        RESIZE(noise(90, 100), across, down)
    with pytest.raises(ValueError, match="cannot be resized"):
        RESIZE(noise(100, 100)[..., :3], across, down)
