"""Decoding encoded bytes into a slot: every accepted format and mode. Hostile files are in `test_decode_hostile`."""

from __future__ import annotations

import io
import time

import numpy as np
import pytest
from PIL import Image

from model.preprocessing.recipe import Preprocess
from service.images.decode import DecodeLimits, Decoder, DecodeTimes, Pixels
from service.images.formats import sniff
from tests.service.images.image_files import FILES, encode, photo

SIZE = 40
LIMITS = DecodeLimits(max_pixels=1_000_000)
FRIENDLY = Preprocess(size=SIZE, mode="friendly")


def slot() -> Pixels:
    """A slot that holds the value 7 before anything is written to it."""
    return np.full((SIZE, SIZE, 3), 7, np.uint8)


def run(data: bytes, limits: DecodeLimits = LIMITS) -> Pixels:
    """The pixels that `data` decodes to."""
    out = slot()
    Decoder(FRIENDLY, limits).decode(data, out)
    return out


@pytest.mark.parametrize(("form", "mode"), FILES)
def test_every_format_and_mode_gives_the_picture(form: str, mode: str) -> None:
    """The slot holds the pixels that the recipe gives for the same image opened with Pillow."""
    data = encode(photo(mode), form)
    with Image.open(io.BytesIO(data)) as image:
        expected = FRIENDLY(image)

    np.testing.assert_array_equal(run(data), expected)
    assert expected.std() > 10


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits", "group4"])
def test_tiff_compressions(compression: str) -> None:
    """Every TIFF compression is decoded, including those that Pillow reads through libtiff."""
    source = photo("1" if compression == "group4" else "RGB")
    data = encode(source, "TIFF", compression=compression)
    difference = run(data).astype(int) - FRIENDLY(source)

    assert abs(difference).mean() < 5


@pytest.mark.parametrize("form", ["PNG", "WEBP", "GIF", "TIFF", "MPO"])
def test_only_the_first_frame_counts(form: str) -> None:
    """Of an animation, a document of several pages or a stereo pair, the first image is used."""
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue", "lime")]
    data = encode(frames[0], form, save_all=True, append_images=frames[1:])

    np.testing.assert_allclose(run(data).mean(axis=(0, 1)), [255, 0, 0], atol=3)


def test_a_jpeg_is_decoded_whole() -> None:
    """A JPEG is decoded at its full size: scaling inside the decoder would change the pixels."""
    large = photo().resize((800, 600))
    data = encode(large, "JPEG", quality=95)
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        expected = FRIENDLY(image)

    np.testing.assert_array_equal(run(data), expected)


def test_the_times_of_both_stages_are_told() -> None:
    """Decoding returns the seconds of both stages, for the metrics and the header Server-Timing."""

    class Slow(Preprocess):
        def __call__(self, image: Image.Image) -> Pixels:
            time.sleep(0.02)
            return FRIENDLY(image)

    times = Decoder(Slow(SIZE), LIMITS).decode(encode(photo(), "PNG"), slot())

    assert isinstance(times, DecodeTimes)
    assert times.decode_s > 0
    assert times.preprocess_s >= 0.02


def test_a_strided_slot_is_filled() -> None:
    """A slot may be a view into a larger array, and only that view is written."""
    arena = np.zeros((2, SIZE, SIZE, 3), np.uint8)
    Decoder(FRIENDLY, LIMITS).decode(encode(photo(), "PNG"), arena[1])

    assert arena[0].max() == 0
    np.testing.assert_array_equal(arena[1], FRIENDLY(photo()))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_sniffing_tells_the_format_whatever_the_name(form: str) -> None:
    """The format of a file is recognised from its bytes alone."""
    name = sniff(encode(photo(), form))

    assert name is not None
    assert name.upper() == form


@pytest.mark.parametrize("shape", [(1, 1), (1, 1000), (1000, 1), (3, 7)])
def test_tiny_and_narrow_images_pass(shape: tuple[int, int]) -> None:
    """Images of one pixel, and of one row or column, are decoded."""
    assert run(encode(Image.new("RGB", shape, "red"), "PNG"))[SIZE // 2, SIZE // 2].tolist() == [255, 0, 0]


def test_pixels_of_another_shape_are_our_mistake() -> None:
    """Preprocessed pixels of a wrong shape are an error; numpy would broadcast one pixel over the whole slot."""

    class OnePixel(Preprocess):
        def __call__(self, image: Image.Image) -> Pixels:
            return np.zeros((1, 1, 3), np.uint8)

    with pytest.raises(RuntimeError, match="slot holds"):
        Decoder(OnePixel(SIZE), LIMITS).decode(encode(photo(), "PNG"), slot())
