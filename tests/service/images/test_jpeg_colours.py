"""Colour profiles of JPEG files on the compiled path: the recipe's own pixels, and none converted on the event loop."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from service.images import inspect_jpeg
from service.images.decode import Decoder
from tests.model.preprocessing.profiles import SPACES, cmyk_profile, grey_profile, rgb_profile
from tests.service.images.test_jpeg import JPEGS, LIMITS, RECIPE, compiled_decoder, decoded, is_supported, jpeg

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def with_icc(image: Image.Image, profile: bytes) -> bytes:
    """A JPEG file with a colour profile, in as many segments as it needs."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95, icc_profile=profile)
    return file.getvalue()


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_profiles_are_converted_on_the_fast_path(name: str, mode: str) -> None:
    """The compiled path gives the recipe's own pixels; RGB and grey, small files and large ones."""
    profile = rgb_profile(name) if mode == "RGB" else grey_profile(1.0)
    for size in ((240, 180), (900, 700)):
        data = with_icc(Image.open(io.BytesIO(jpeg(size))).convert(mode), profile)
        with Image.open(io.BytesIO(data)) as image:
            expected = RECIPE(image)
        plain = dataclasses.replace(RECIPE, mode="reference")

        assert is_supported(data)
        np.testing.assert_array_equal(decoded(data, JPEGS), expected)
        assert not np.array_equal(decoded(data, JPEGS), decoded(data, JPEGS, plain))


def test_a_profile_in_several_segments_is_joined() -> None:
    """A profile of more than 64 kB in several segments is joined; if a segment is missing there is no profile."""
    profile = rgb_profile("ProPhoto")
    long = profile[:36] + profile[36:] + bytes(100_000)
    data = with_icc(Image.open(io.BytesIO(jpeg())), long)
    header = inspect_jpeg.inspect_plain(data)
    assert header is not None
    second = data.index(b"ICC_PROFILE\0", data.index(b"ICC_PROFILE\0") + 1) - 4
    length = int.from_bytes(data[second + 2 : second + 4], "big")
    without = inspect_jpeg.inspect_plain(data[:second] + data[second + 2 + length :])

    assert long == header.profile
    assert without is not None
    assert b"" == without.profile


def test_inks_with_a_profile_are_left_to_pillow() -> None:
    """CMYK files with a profile are left to Pillow, because they are converted before the resize."""
    data = with_icc(Image.open(io.BytesIO(jpeg(mode="CMYK"))), cmyk_profile())
    with Image.open(io.BytesIO(data)) as image:
        expected = RECIPE(image)

    assert not is_supported(data)
    np.testing.assert_array_equal(decoded(data, JPEGS), expected)


def test_a_small_file_with_a_profile_is_quick_if_the_profile_changes_nothing() -> None:
    """A small file with a profile is decoded on the event loop once the profile is known to change nothing."""
    decoder = compiled_decoder()
    same = with_icc(Image.open(io.BytesIO(jpeg((240, 180)))), SRGB)
    other = with_icc(Image.open(io.BytesIO(jpeg((240, 180)))), rgb_profile("Display P3"))
    first = [decoder.quick(data) is not None for data in (same, other)]
    for data in (same, other):
        decoder.decode(data, np.empty((RECIPE.size, RECIPE.size, 3), np.uint8))

    assert [False, False] == first
    assert [True, False] == [decoder.quick(data) is not None for data in (same, other)]
    reference = Decoder(dataclasses.replace(RECIPE, mode="reference"), LIMITS, jpegs=JPEGS)
    assert reference.quick(other) is not None
