"""Every pixel equals Pillow's own passes, horizontal first; windows and shapes are drawn at random."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from model.preprocessing.resize import MAX_DISCARD_RATIO, Axis, Box, Pixels, resample, resize_window


def _noise(rng: np.random.Generator, height: int, width: int) -> Pixels:
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return np.where(pixels > 127, 255, 0).astype(np.uint8) if rng.random() < 0.3 else pixels  # overshoots are clipped


def _random_axis(rng: np.random.Generator, longest: int, stretch: int) -> Axis:
    source, target = (int(rng.integers(1, rng.integers(2, limit))) for limit in (longest, longest * stretch))
    first = int(rng.integers(0, target))
    return Axis(source, target, first, int(rng.integers(first + 1, target + 1)))


def _pillow_window(pixels: Pixels, across: Axis, down: Axis) -> Pixels:
    wide = Image.fromarray(pixels).resize((across.target, down.source), Image.Resampling.BICUBIC)
    whole = wide.resize((across.target, down.target), Image.Resampling.BICUBIC)
    return np.asarray(whole)[down.first : down.last, across.first : across.last]


@pytest.mark.parametrize("seed", range(20))
def test_one_axis_equals_pillow(seed: int) -> None:
    """The numpy arithmetic is Pillow's for any scale up or down and any window."""
    rng = np.random.default_rng(seed)
    for _ in range(20):
        axis = _random_axis(rng, longest=1500, stretch=2)
        pixels = _noise(rng, axis.source, 2)
        start, stop = axis.reach()

        whole = Image.fromarray(pixels).resize((2, axis.target), Image.Resampling.BICUBIC)

        np.testing.assert_array_equal(resample(pixels[start:stop], axis), np.asarray(whole)[axis.first : axis.last])


@pytest.mark.parametrize(("source", "target"), [(1000, 256_000), (1, 100_000), (65_000, 224), (37, 7084), (256, 256)])
def test_extreme_scales_equal_pillow(source: int, target: int) -> None:
    """Extreme scales agree at both ends and in the middle of the axis."""
    pixels = _noise(np.random.default_rng(source), source, 1)
    whole = np.asarray(Image.fromarray(pixels).resize((1, target), Image.Resampling.BICUBIC))
    for first in (0, (target - 224) // 2, target - 224):
        axis = Axis(source, target, first, first + 224)
        start, stop = axis.reach()

        np.testing.assert_array_equal(resample(pixels[start:stop], axis), whole[first : first + 224])


@pytest.mark.parametrize("seed", range(20))
def test_two_axes_equal_pillow(seed: int) -> None:
    """A window equals two plain Pillow passes over the whole image, also where most of an axis is discarded."""
    rng = np.random.default_rng(100 + seed)
    for _ in range(10):
        across, down = _random_axis(rng, longest=250, stretch=3), _random_axis(rng, longest=250, stretch=3)
        pixels = _noise(rng, down.source, across.source)

        found = resize_window(Image.fromarray(pixels).crop, across, down)

        np.testing.assert_array_equal(found, _pillow_window(pixels, across, down))


def test_bands_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are read in many small bands give the same result as one band."""
    monkeypatch.setattr("model.preprocessing.resize.BAND_BYTES", 4 * 300 * 7)
    pixels = _noise(np.random.default_rng(0), 400, 300)
    across, down = Axis(300, 256, 16, 240), Axis(400, 341, 58, 282)
    boxes: list[Box] = []

    def read(box: Box) -> Image.Image:
        boxes.append(box)
        return Image.fromarray(pixels).crop(box)

    np.testing.assert_array_equal(resize_window(read, across, down), _pillow_window(pixels, across, down))
    assert len(boxes) > 30
    assert (boxes[0][1], boxes[-1][3]) == down.reach()


def test_only_the_needed_pixels_are_read() -> None:
    """No more of a panorama's width is read than the window needs."""
    boxes: list[Box] = []

    def read(box: Box) -> Image.Image:
        boxes.append(box)
        return Image.new("RGB", (box[2] - box[0], box[3] - box[1]))

    resize_window(read, Axis(30_000, 192_000, 95_888, 96_112), Axis(40, 256, 16, 240))

    assert MAX_DISCARD_RATIO * 224 < 192_000
    assert sum((right - left) * (bottom - top) for left, top, right, bottom in boxes) < 50 * 50
