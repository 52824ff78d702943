"""A self-test of the compiled JPEG code at start: small files with the pixels that Pillow gives for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from model.preprocessing.recipe import ORIENTATIONS, Preprocess
from model.preprocessing.resize import UPRIGHT, Pixels, Turn
from service.images import inspect_file, jpeg, pillow

RECIPE = Preprocess(mode="friendly")
SIZE = (303, 227)  # odd; below twice the recipe's short side, so VIM_DECODE=fast does not scale it
TURNED = 6
# An EXIF segment with the orientation TURNED and nothing else.
_EXIF = b"\xff\xe1\0\x22Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0%c\0\0\0\0\0\0\0" % TURNED


@dataclass(frozen=True, slots=True)
class Sample:
    """A JPEG file."""

    data: bytes
    cmyk: bool
    turn: Turn
    size: tuple[int, int] = SIZE

    def __str__(self) -> str:
        return f"a {'CMYK' if self.cmyk else 'RGB'} file{', turned' if self.turn.swaps else ''}"


def samples() -> Iterator[Sample]:
    """RGB and CMYK, upright and turned."""
    for cmyk in (False, True):
        data = jpeg.encode(_picture(4 if cmyk else 3))
        yield Sample(data, cmyk, UPRIGHT)
        yield Sample(data[:2] + _EXIF + data[2:], cmyk, ORIENTATIONS[TURNED])


def expected(sample: Sample) -> Pixels:
    """Pillow's pixels."""
    header = inspect_file.inspect("JPEG", sample.data)
    return pillow.decode(sample.data, "JPEG", header, RECIPE, None).pixels


def _picture(channels: int) -> Pixels:
    """Gradients with noise, so that every value occurs."""
    width, height = SIZE
    y, x = np.mgrid[:height, :width]
    slopes = np.stack([x + 2 * y, 3 * x - y, 255 - x + y, 5 * y][:channels], axis=2)
    noise = np.random.default_rng(0).integers(0, 48, slopes.shape)
    return (slopes + noise).astype(np.uint8)
