"""The images on which dtypes are compared: every grain, extremes, and real pictures."""

from __future__ import annotations

import torch

from model.preprocessing.recipe import Preprocess
from model.runtime.cuda.calibration import GRAINS, calibration_pixels


def test_the_images_are_the_same_at_every_call() -> None:
    """Every call returns the same eight fields, five extremes and nine pictures, as the model receives them."""
    pixels = calibration_pixels(Preprocess(64))

    assert (GRAINS + 5 + 9, 64, 64, 3) == pixels.shape
    assert torch.uint8 == pixels.dtype
    assert torch.equal(pixels, calibration_pixels(Preprocess(64)))


def test_the_fields_have_every_grain() -> None:
    """The fields range from noise to a few large patches."""
    fields = calibration_pixels(Preprocess(64))[:GRAINS].float()
    steps = (fields[:, :, 1:] - fields[:, :, :-1]).abs().mean((1, 2, 3))

    assert float(steps[0]) > 10 * float(steps[-1])


def test_the_extremes_are_flat_and_finest() -> None:
    """The extremes are black, white, a checkerboard, and stripes in both directions."""
    black, white, board, rows, columns = calibration_pixels(Preprocess(64))[GRAINS : GRAINS + 5, :, :, 0]

    assert (0, 255) == (int(black.max()), int(white.min()))
    assert [[0, 255], [255, 0]] == board[:2, :2].tolist()
    assert [[0, 0], [255, 255]] == rows[:2, :2].tolist() == columns[:2, :2].mT.tolist()


def test_small_models_get_no_pictures() -> None:
    """Small models get no pictures, because their recipe does not resize."""
    assert (GRAINS + 5, 32, 32, 3) == calibration_pixels(Preprocess(32)).shape
