"""The compiled resize gives Pillow's pixels, or says beforehand that it does not support a shape."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.preprocessing.compiled import simd_bytes
from model.preprocessing.compiled.resize import Resize
from model.preprocessing.recipe import ORIENTATIONS, Preprocess
from model.preprocessing.resize import Axis, resize_window

RESIZE = Resize()


@pytest.fixture(params=["as on this CPU", "without VNNI"])
def resize(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Resize]:
    """The kernel as it is on this CPU, and as it is on a CPU without VNNI."""
    if request.param == "as on this CPU":
        yield RESIZE
        return
    if not simd_bytes.VNNI:
        pytest.skip("that is this CPU")
    monkeypatch.setattr(simd_bytes, "VNNI", False)
    yield Resize(tmp_path)


def noise(width: int, height: int) -> np.ndarray:
    """Seeded pixels (H, W, 3) in which every neighbour differs."""
    return np.random.default_rng(width * height).integers(0, 256, (height, width, 3), np.uint8)


SIZES = [(640, 480), (480, 641), (224, 224), (256, 300), (37, 41), (12, 9), (1500, 700), (2048, 1536), (230, 900)]


@pytest.mark.parametrize("side", [224, 65])
def test_the_pixels_are_those_of_pillow(resize: Resize, side: int) -> None:
    """Reduced and enlarged images in both orientations agree, also for a crop whose width is not a multiple of four."""
    recipe = Preprocess(size=side)
    for size in SIZES:
        pixels, axes = noise(*size), recipe.axes(size)
        expected = recipe(Image.fromarray(pixels))

        if Resize.can(*axes):
            np.testing.assert_array_equal(recipe.padded(resize(pixels, *axes), *axes), expected, str(size))
        else:
            assert min(size) < 16 or any(axis.mostly_discarded for axis in axes)


@pytest.mark.parametrize("orientation", sorted(ORIENTATIONS))
def test_turned_images_are_resized_to_their_edges(resize: Resize, orientation: int) -> None:
    """Windows of the whole source agree for every remainder of the sides by four, so nothing outside it is counted."""
    turn, recipe = ORIENTATIONS[orientation], Preprocess(size=80, crop_ratio=1.0)
    assert turn.method is not None
    for size in [(101, 102), (102, 103), (103, 100), (61, 63)]:
        pixels = noise(*size)
        upright = Image.fromarray(pixels).transpose(turn.method)
        axes = recipe.axes(upright.size)
        room = Resize.room_for(size[0])
        roomy = np.concatenate([pixels.reshape(-1), np.full(room, 255, np.uint8)])[: pixels.size].reshape(pixels.shape)

        np.testing.assert_array_equal(resize(pixels, *axes, turn), recipe(upright))
        np.testing.assert_array_equal(resize(roomy, *axes, turn, room), recipe(upright))


@pytest.mark.parametrize("source", [(60, 60), (100, 700), (1000, 37)])
def test_the_largest_weights_fit(resize: Resize, source: tuple[int, int]) -> None:
    """Black and white stripes enlarged at the edge agree, where a weight is more than one."""
    pixels = np.zeros((source[1], source[0], 3), np.uint8)
    pixels[::2, :] = pixels[:, ::3] = 255
    axes = Axis(source[0], 240, 0, 64), Axis(source[1], 240, 176, 240)
    upright = Image.fromarray(pixels)

    np.testing.assert_array_equal(resize(pixels, *axes), resize_window(upright.crop, *axes))


def test_shapes_that_are_mostly_thrown_away_are_left_alone() -> None:
    """1 x 1000, which becomes 256 x 256,000, is left to `model.preprocessing.resize`."""
    assert not Resize.can(*Preprocess().axes((1, 1000)))
    assert Resize.can(*Preprocess().axes((640, 480)))


def test_pixels_that_are_not_the_axes_source_are_refused() -> None:
    """Pixels whose shape does not fit the axes are refused before the kernel runs."""
    across = down = Axis(100, 50, 0, 50)

    with pytest.raises(ValueError, match="cannot be resized"):
        RESIZE(noise(90, 100), across, down)
    with pytest.raises(ValueError, match="cannot be resized"):
        RESIZE(noise(100, 100)[..., :2], across, down)
