"""Embedded colour profiles are converted to sRGB in friendly mode, after the resize."""

from __future__ import annotations

import dataclasses
import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from model.preprocessing.colour import CLOSE, LARGEST_PROFILE, conversion
from model.preprocessing.recipe import Preprocess
from model.preprocessing.resize import Pixels
from tests.model.preprocessing.profiles import SPACES, cmyk_profile, grey_profile, rgb_profile

FRIENDLY = Preprocess(size=64, mode="friendly")
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def picture(mode: str = "RGB", size: tuple[int, int] = (90, 70)) -> Image.Image:
    """Large soft patches of colour, as a photograph has."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    coarse = np.random.default_rng(0).integers(0, 256, (5, 6, bands), np.uint8)
    return Image.frombytes(mode, (6, 5), coarse.tobytes()).resize(size, Image.Resampling.BICUBIC)


def with_profile(image: Image.Image, profile: bytes) -> Image.Image:
    """The same image with a profile, as Pillow opens a file."""
    copy = image.copy()
    copy.info["icc_profile"] = profile
    return copy


@pytest.mark.parametrize("name", SPACES)
def test_other_spaces_are_converted(name: str) -> None:
    """The result is close to converting every pixel first, and far from ignoring the profile."""
    profile = rgb_profile(name)
    before = FRIENDLY(conversion(profile).apply(picture()))

    found = FRIENDLY(with_profile(picture(), profile))

    assert np.abs(found.astype(int) - before).mean() <= 0.7
    assert np.abs(found.astype(int) - FRIENDLY(picture())).mean() > 3
    assert found.flags.c_contiguous
    assert found.flags.writeable


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_a_gamma_of_grey_is_converted(mode: str) -> None:
    """A grey image stays grey."""
    found = FRIENDLY(with_profile(picture(mode), grey_profile(1.0)))

    assert (found[..., 0] == found[..., 1]).all()
    assert found.mean() > FRIENDLY(picture(mode)).mean() + 20


def test_inks_are_converted_before_the_resize() -> None:
    """The profile of a CMYK image decides its colours, not the plain formula."""
    profile, image = cmyk_profile(), picture("CMYK")

    found = FRIENDLY(with_profile(image, profile))

    np.testing.assert_array_equal(found, FRIENDLY(conversion(profile).apply(image)))
    assert np.abs(found.astype(int) - FRIENDLY(image)).mean() > 10
    assert FRIENDLY.plain_turn(with_profile(image, profile)) is None
    assert FRIENDLY.plain_turn(image) is not None


def test_the_reference_ignores_profiles() -> None:
    """In reference mode profiles are ignored, as in the paper's evaluation."""
    plain = dataclasses.replace(FRIENDLY, mode="reference")

    np.testing.assert_array_equal(plain(with_profile(picture(), rgb_profile("ProPhoto"))), plain(picture()))


@pytest.mark.parametrize(
    ("mode", "profile"),
    [
        ("RGB", SRGB),
        ("RGB", b"no profile"),
        ("RGB", rgb_profile("Display P3")[:300]),
        ("RGB", grey_profile(1.0)),
        ("RGB", cmyk_profile()),
        ("L", cmyk_profile()),
        ("CMYK", grey_profile(1.0)),
        ("RGB", bytes(LARGEST_PROFILE + 1)),
    ],
    ids=["sRGB", "broken", "cut", "grey for RGB", "inks for RGB", "inks for grey", "grey for inks", "too large"],
)
def test_a_profile_that_does_not_apply_changes_nothing(mode: str, profile: bytes) -> None:
    """Profiles of sRGB, broken ones, and those of another kind of image change no pixel."""
    np.testing.assert_array_equal(FRIENDLY(with_profile(picture(mode), profile)), FRIENDLY(picture(mode)))


def test_profiles_are_told_apart() -> None:
    """sRGB needs no conversion, a broken profile is marked as broken, and transforms are built once."""
    assert (None, False) == (conversion(SRGB).transform, conversion(SRGB).broken)
    assert conversion(b"").broken
    assert conversion(rgb_profile("Adobe RGB")) is conversion(rgb_profile("Adobe RGB"))
    assert 0 < CLOSE < 4


def test_small_images_are_converted_too() -> None:
    """At sizes up to 32 the image keeps its size, and its colours are converted."""
    image = picture(size=(20, 30))
    small = Preprocess(size=32, mode="friendly")

    found: Pixels = small(with_profile(image, rgb_profile("Adobe RGB")))

    np.testing.assert_array_equal(found, np.asarray(conversion(rgb_profile("Adobe RGB")).apply(image)))


def test_the_fingerprint_of_friendly_says_so() -> None:
    """Friendly models have another fingerprint than before profiles were converted."""
    assert "sRGB" == FRIENDLY.to_dict()["colours"]
    assert "colours" not in Preprocess(size=64).to_dict()
    assert FRIENDLY == Preprocess.from_dict(FRIENDLY.to_dict())


def png(**chunks: tuple[float, ...]) -> Image.Image:
    """A PNG file with these chunks, opened; values as the chunk has them, times 100,000."""
    file, added = io.BytesIO(), PngImagePlugin.PngInfo()
    for name, values in chunks.items():
        content = bytes(1) if name == "sRGB" else struct.pack(f">{len(values)}I", *(round(1e5 * v) for v in values))
        added.add(name.encode(), content)
    picture().save(file, "PNG", pnginfo=added)
    return Image.open(io.BytesIO(file.getvalue()))


SRGB_CHROMATICITIES = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
P3_CHROMATICITIES = (0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06)


@pytest.mark.parametrize(
    "chunks",
    [
        {},
        {"gAMA": (0.45455,)},
        {"gAMA": (0.45455,), "cHRM": SRGB_CHROMATICITIES},
        {"sRGB": (0,), "gAMA": (1.0,)},
        {"cHRM": P3_CHROMATICITIES},
        {"gAMA": (0.0,)},
        {"gAMA": (0.45455,), "cHRM": (0.3, 0.0, *P3_CHROMATICITIES[2:])},
        {"gAMA": (0.45455,), "cHRM": (0.3, 0.3) * 4},
    ],
    ids=str,
)
def test_png_chunks_that_say_srgb_or_nonsense_change_nothing(chunks: dict[str, tuple[float, ...]]) -> None:
    """PNG chunks that define sRGB, primaries without a gamma, and impossible values change no pixel."""
    np.testing.assert_array_equal(FRIENDLY(png(**chunks)), FRIENDLY(picture()))


def test_png_chunks_alone_say_the_space() -> None:
    """gAMA and cHRM of Display P3 are its profile; a gamma of 1 is linear light; a profile comes before them."""
    display = png(gAMA=(0.45455,), cHRM=P3_CHROMATICITIES)
    expected = FRIENDLY(with_profile(picture(), rgb_profile("Display P3")))

    np.testing.assert_array_equal(FRIENDLY(display), expected)
    assert FRIENDLY(png(gAMA=(1.0,))).mean() > FRIENDLY(picture()).mean() + 20
    np.testing.assert_array_equal(FRIENDLY(with_profile(png(gAMA=(1.0,)), rgb_profile("Display P3"))), expected)


def test_known_colours_of_display_p3() -> None:
    """Colours of Display P3 become those of the linear matrix of CSS Color 4, computed by hand."""
    image = Image.fromarray(np.array([[[128, 128, 128], [204, 102, 51]]], np.uint8))
    grey, orange = np.asarray(conversion(rgb_profile("Display P3")).apply(image))[0].astype(int)

    assert np.abs(grey - 128).max() <= 1
    assert np.abs(orange - [219, 94, 31]).max() <= 1


# --- code points of ITU-T H.273 -------------------------------------------------------------------------------------


def encoded(transfer: int) -> Image.Image:
    """The picture as this transfer function encodes it, with sRGB's primaries; its white is the reference white."""
    signal = np.asarray(picture()) / 255
    linear = np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)
    if transfer == 16:  # SMPTE ST 2084, equation 5.1, with white at 203 of 10,000 cd/m2
        power = (linear * 203 / 10_000) ** 0.1593017578125
        found = ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375
    else:  # ARIB STD-B67 on a display with a gamma of 1.2; 75 % is white
        white = (np.exp((0.75 - 0.55991073) / 0.17883277) + 0.28466892) / 12
        scene = linear ** (1 / 1.2) * white
        above = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
        found = np.where(scene <= 1 / 12, np.sqrt(3 * scene), above)
    return Image.fromarray((255 * found).round().astype(np.uint8))


def with_code_points(image: Image.Image, primaries: int, transfer: int) -> Image.Image:
    """The image with code points, as the service puts them there."""
    image.info["cicp"] = (primaries, transfer)
    return image


@pytest.mark.parametrize("transfer", [16, 18], ids=["PQ", "HLG"])
def test_levels_of_hdr_up_to_white_are_those_of_sdr(transfer: int) -> None:
    """A picture that is no brighter than the reference white looks as it does in sRGB, up to the rounding of 8 bits."""
    found = FRIENDLY(with_code_points(encoded(transfer), 1, transfer)).astype(int)

    assert np.abs(found - FRIENDLY(picture())).max() <= 5
    assert np.abs(FRIENDLY(encoded(transfer)).astype(int) - FRIENDLY(picture())).mean() > 10


def test_brighter_levels_of_hdr_are_white() -> None:
    """HDR levels above the reference white are white."""
    bright = with_code_points(Image.new("RGB", (64, 64), (200, 200, 200)), 9, 16)

    assert FRIENDLY(bright).min() == 255


@pytest.mark.parametrize(("primaries", "transfer"), [(1, 13), (2, 2), (1, 1), (6, 6), (7, 6)])
def test_code_points_that_say_srgb_change_little(primaries: int, transfer: int) -> None:
    """Code points of sRGB, BT.709 and BT.601, and unspecified ones, change pixels by little."""
    found = FRIENDLY(with_code_points(picture(), primaries, transfer)).astype(int)

    assert np.abs(found - FRIENDLY(picture())).mean() < (0.1 if primaries < 3 else 4)


@pytest.mark.parametrize(("primaries", "transfer"), [(0, 13), (250, 13), (1, 3), (12, 200), (4, 4)])
def test_code_points_that_are_not_known_change_nothing(primaries: int, transfer: int) -> None:
    """Reserved code points, and those that no photograph has, change no pixel."""
    np.testing.assert_array_equal(FRIENDLY(with_code_points(picture(), primaries, transfer)), FRIENDLY(picture()))


def test_code_points_of_display_p3() -> None:
    """Code points of Display P3 are converted, and take precedence over an ICC profile."""
    image = with_code_points(with_profile(picture(), rgb_profile("Adobe RGB")), 12, 13)

    np.testing.assert_array_equal(FRIENDLY(image), FRIENDLY(with_profile(picture(), rgb_profile("Display P3"))))
