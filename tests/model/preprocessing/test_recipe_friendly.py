"""Friendly mode corrects orientation, transparency and bit depth; other pixels equal the reference's."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from model.preprocessing.recipe import Preprocess

ORIENTATION = 0x0112
WHITE, BLACK, RED = (255, 255, 255), (0, 0, 0), (255, 0, 0)

friendly = Preprocess(size=8, mode="friendly")  # up to 32 pixels images keep their size, so only colours are tested


def _noise(seed: int, width: int, height: int, mode: str = "RGB") -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.frombytes(mode, (width, height), pixels.tobytes())


def _reopened(image: Image.Image, **options: Any) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return Image.open(file)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [8, 64])
def test_friendly_turns_upright(orientation: int, size: int) -> None:
    """All eight EXIF orientations give the pixels of the upright image."""
    image = _noise(orientation, 90, 130)
    image.getexif()[ORIENTATION] = orientation

    found = Preprocess(size=size, mode="friendly")(image)

    np.testing.assert_array_equal(found, Preprocess(size=size)(ImageOps.exif_transpose(image)))


def test_friendly_turns_band_by_band(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turning small parts gives what turning the whole image gives."""
    monkeypatch.setattr("model.preprocessing.resize.BAND_BYTES", 4 * 90 * 5)
    image = _noise(3, 300, 90)
    image.getexif()[ORIENTATION] = 7

    found = Preprocess(size=64, mode="friendly")(image)

    np.testing.assert_array_equal(found, Preprocess(size=64)(ImageOps.exif_transpose(image)))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("exif", [b"Exif\0\0MM", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12", b"\xff" * 20])
def test_friendly_survives_broken_exif(exif: bytes) -> None:
    """A photograph with damaged metadata is decoded."""
    image = _noise(4, 6, 4)
    image.info["exif"] = exif

    np.testing.assert_array_equal(friendly(image), np.asarray(image))


@pytest.mark.parametrize("value", [0, 9, 393216])
def test_friendly_ignores_unknown_orientations(value: int) -> None:
    """An orientation that EXIF does not define is ignored."""
    image = _noise(5, 6, 4)
    image.getexif()[ORIENTATION] = value

    assert friendly(image).shape == (4, 6, 3)


@pytest.mark.parametrize(
    ("image", "opaque"),
    [
        (Image.new("RGBA", (2, 2), (*RED, 255)), RED),
        (Image.new("RGBA", (2, 2), (*RED, 0)), WHITE),
        (Image.new("RGBA", (2, 2), (*BLACK, 51)), (204, 204, 204)),
        (Image.new("LA", (2, 2), (0, 255)), BLACK),
        (Image.new("LA", (2, 2), (0, 0)), WHITE),
        (Image.new("RGBA", (2, 2), (*RED, 0)).convert("RGBa"), WHITE),
        (Image.new("PA", (2, 2), (0, 0)), WHITE),
        (_reopened(Image.new("RGB", (2, 2), RED), transparency=RED), WHITE),
        (_reopened(Image.new("RGB", (2, 2), RED), transparency=BLACK), RED),
        (_reopened(Image.new("L", (2, 2), 7), transparency=7), WHITE),
        (_reopened(Image.new("1", (2, 2), 0), transparency=0), WHITE),
        (_reopened(Image.new("P", (2, 2), 0), transparency=0), WHITE),
        (_reopened(Image.new("P", (2, 2), 0), transparency=b"\xff\x00"), BLACK),
        (_reopened(Image.new("RGBA", (2, 2), (*RED, 0)).quantize(4)), WHITE),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else str(value),
)
def test_friendly_puts_transparency_on_white(image: Image.Image, opaque: tuple[int, int, int]) -> None:
    """Alpha channels, palette alpha and a transparent colour are shown on white."""
    assert friendly(image)[0, 0].tolist() == list(opaque)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([0, 257, 32896, 65535], np.uint16), [0, 1, 128, 255]),
        (np.array([0, 257, 32896, 65535], np.int32), [0, 1, 128, 255]),
        (np.array([-5, 0, 100_000, 200_000], np.int32), [0, 0, 128, 255]),
        (np.array([0, 0.5, 1, -1], np.float32), [0, 128, 255, 0]),
        (np.array([0, 1, 254.6, 255], np.float32), [0, 1, 255, 255]),
        (np.array([0, 257, 65535, np.nan], np.float32), [0, 1, 255, 0]),
    ],
)
def test_friendly_scales_deep_pixels(array: np.ndarray[Any, Any], expected: list[int]) -> None:
    """16-bit values are scaled to 8 bits; wider modes by the range they use."""
    pixels = friendly(Image.fromarray(array[None]))

    assert pixels[0].tolist() == [[level] * 3 for level in expected]


def test_friendly_scales_16_bit_files() -> None:
    """A 16-bit PNG keeps its gradations, its transparent level is white, and big-endian files agree."""
    ramp = Image.fromarray(np.arange(0, 65536, 257, dtype=np.uint16)[None])
    big_endian = Image.frombytes("I;16B", ramp.size, np.asarray(ramp).astype(">u2").tobytes())

    assert friendly(_reopened(ramp))[0, :, 0].tolist() == list(range(256))
    assert friendly(big_endian)[0, :, 0].tolist() == list(range(256))
    ramp.info["transparency"] = 257
    assert friendly(ramp)[0, :3, 0].tolist() == [0, 255, 2]


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "YCbCr", "HSV", "1", "P"])
def test_friendly_changes_nothing_else(mode: str) -> None:
    """Ordinary images equal the reference's, pixel for pixel."""
    image = _noise(6, 70, 60).convert(mode)

    np.testing.assert_array_equal(Preprocess(size=40, mode="friendly")(image), Preprocess(size=40)(image))
