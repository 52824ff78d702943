"""Decoding encoded bytes into a slot: every accepted format and mode. Hostile files are in `test_decode_hostile`."""

from __future__ import annotations

import dataclasses
import io
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from model.preprocessing.recipe import Preprocess
from service.errors import DeadlineExceeded, TooManyPixels
from service.images.decode import DecodeLimits, Decoder, DecodeTimes, Pixels
from service.images.formats import sniff
from service.images.jpeg import Jpegs
from service.images.memory_budget import MemoryBudget
from tests.model.preprocessing.profiles import rgb_profile
from tests.service.images.image_files import FILES, encode, photo

SIZE = 40
LIMITS = DecodeLimits(max_pixels=1_000_000)
FRIENDLY = Preprocess(size=SIZE, mode="friendly")
JPEGS = Jpegs()


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


def test_pixels_are_preprocessed_like_a_file() -> None:
    """RGB pixels give the same slot as a file that holds them."""
    out = slot()
    Decoder(FRIENDLY, LIMITS).decode(np.asarray(photo()), out)

    np.testing.assert_array_equal(out, run(encode(photo(), "PNG")))


def test_too_many_pixels_are_refused_without_a_file() -> None:
    """The limit of pixels holds for an image of pixels too, and leaves the slot untouched."""
    out = slot()
    with pytest.raises(TooManyPixels):
        Decoder(FRIENDLY, DecodeLimits(100)).decode(np.asarray(photo()), out)

    assert (out == 7).all()


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_decoding_waits_for_the_memory_budget(form: str) -> None:
    """A file is not decoded while other images hold the memory, and is decoded once they return it."""
    budget = MemoryBudget(1 << 20, timeout_s=0.05)
    decoder = Decoder(FRIENDLY, LIMITS, budget, JPEGS)
    data = encode(photo(), form)
    with budget.reserve(1 << 20), pytest.raises(DeadlineExceeded):
        decoder.decode(data, slot())
    out = slot()
    decoder.decode(data, out)

    np.testing.assert_array_equal(out, run(data))


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


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize(
    ("profile", "found"), [(b"", None), (rgb_profile("Adobe RGB"), "converted"), (b"nonsense", "broken")]
)
def test_the_times_say_what_became_of_a_profile(kind: str, profile: bytes, found: str | None) -> None:
    """The times say what was done with a profile, so that broken ones are counted; reference mode ignores profiles."""
    file = io.BytesIO()
    photo().save(file, kind, icc_profile=profile)
    for jpegs in (None, JPEGS):
        times = Decoder(FRIENDLY, LIMITS, jpegs=jpegs).decode(file.getvalue(), slot())
        assert found == times.profile
    reference = dataclasses.replace(FRIENDLY, mode="reference")
    assert Decoder(reference, LIMITS).decode(file.getvalue(), slot()).profile is None


def test_png_code_points_count_before_its_profile() -> None:
    """The chunk cICP of a PNG takes precedence over other colour chunks, and the image is converted."""
    found = []
    for profile in (b"", rgb_profile("Adobe RGB")):
        data = encode(photo(), "PNG", icc_profile=profile)
        at = data.index(b"IDAT") - 4
        chunk = b"cICP" + bytes([12, 13, 0, 1])
        chunk = (4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
        found.append(run(data[:at] + chunk + data[at:]))

    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], run(encode(photo(), "PNG", icc_profile=rgb_profile("Display P3"))))
