"""Colour spaces: pixels of an image with a colour profile -> sRGB, by lcms (Pillow's ImageCms).

The rendering intent is relative colorimetric with black point compensation, which is what browsers do.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from model.preprocessing import icc

Pixels = NDArray[np.uint8]
Space = Literal["RGB", "L", "CMYK"]
Kind = Literal["srgb", "converted", "broken"]

LARGEST_PROFILE, SMALL_PROFILE = 4 << 20, 1 << 16  # bytes
# Profiles whose transforms are kept, which take 3 ms to build. Clients choose the profiles, so few large ones.
SMALL_KEPT, LARGE_KEPT = 64, 4
SRGB_GAMMA, ROUNDING = 1 / 2.2, 0.001  # how encoders write sRGB's curve in gAMA
# Code points of ITU-T H.273, tables 2 and 3.
_SRGB_SPACE = (icc.SRGB_POINTS, icc.SRGB_WHITE)
_PRIMARIES = {
    1: _SRGB_SPACE,
    2: _SRGB_SPACE,  # unspecified
    5: (((0.64, 0.33), (0.29, 0.60), (0.15, 0.06)), icc.SRGB_WHITE),
    6: (((0.630, 0.340), (0.310, 0.595), (0.155, 0.070)), icc.SRGB_WHITE),
    7: (((0.630, 0.340), (0.310, 0.595), (0.155, 0.070)), icc.SRGB_WHITE),
    9: (((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)), icc.SRGB_WHITE),
    11: (((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)), (0.314, 0.351)),
    12: (((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)), icc.SRGB_WHITE),
}
_TRANSFERS: dict[int, icc.Curve] = dict.fromkeys((1, 2, 6, 13, 14, 15), "srgb")
_TRANSFERS |= {4: 2.2, 5: 2.8, 8: 1.0, 16: "pq", 18: "hlg"}
CLOSE = 2  # levels: a profile that changes no colour by more than this counts as sRGB
_SPACES: dict[str, Space] = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
_SRGB = ImageCms.createProfile("sRGB")
# What ImageCms raises for broken profiles, and for those that lcms cannot connect to sRGB.
_BROKEN = (ImageCms.PyCMSError, OSError, ValueError, TypeError, RuntimeError)


@dataclass(frozen=True, slots=True)
class Conversion:
    """The conversion that a profile requires. Without a transform the pixels are used as they are."""

    space: Space
    transform: ImageCms.ImageCmsTransform | None
    broken: bool = False

    @property
    def kind(self) -> Kind:
        """What is done with the profile; "srgb" if it changes nothing."""
        return "broken" if self.broken else "srgb" if self.transform is None else "converted"

    @property
    def is_for_inks(self) -> bool:
        """Whether it converts CMYK."""
        return self.space == "CMYK" and self.transform is not None

    def apply(self, image: Image.Image) -> Image.Image:
        """Convert an image in the mode `space` to sRGB, in mode RGB."""
        assert self.transform is not None
        found = ImageCms.applyTransform(image, self.transform)
        assert found is not None
        return found


_UNUSABLE = Conversion("RGB", None, broken=True)


def conversion(profile: bytes) -> Conversion:
    """Return the conversion that an ICC profile requires. Raises MemoryError only."""
    if len(profile) > LARGEST_PROFILE:
        return _UNUSABLE
    return _small(profile) if len(profile) <= SMALL_PROFILE else _large(profile)


def _conversion(profile: bytes) -> Conversion:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = _SPACES.get(source.profile.xcolor_space)
        if space is None:
            return _UNUSABLE
        transform = ImageCms.buildTransform(
            source,
            _SRGB,
            space,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        found = Conversion(space, transform)
        return Conversion(space, None) if _changes_nothing(found) else found
    except _BROKEN:
        return _UNUSABLE


_small = functools.lru_cache(SMALL_KEPT)(_conversion)
_large = functools.lru_cache(LARGE_KEPT)(_conversion)


def png_profile(info: Mapping[Any, Any]) -> bytes:
    """Return a profile for the chunks gAMA and cHRM, of Pillow's `info` of a PNG; empty if they define no space.

    They count only without a profile and without the chunk sRGB; cHRM counts with gAMA only, as in browsers.
    """
    gamma, points = info.get("gamma"), info.get("chromaticity")
    if "srgb" in info or not isinstance(gamma, float) or not 0.1 <= gamma <= 2:
        return b""
    white, *primaries = _points(points) if points else (icc.SRGB_WHITE, *icc.SRGB_POINTS)
    curve: icc.Curve = "srgb" if abs(gamma - SRGB_GAMMA) < ROUNDING else 1 / gamma
    try:
        return icc.matrix_profile((primaries[0], primaries[1], primaries[2]), white, curve)
    except ValueError:
        return b""


def cicp_profile(primaries: int, transfer: int) -> bytes:
    """Return a profile for code points of ITU-T H.273; empty for unspecified and unknown ones.

    BT.709's transfer function counts as sRGB's, because encoders of photographs write one for the other. Of HDR images
    the levels up to the reference white are shown, and brighter ones are white (see `model.preprocessing.icc`).
    """
    curve, space = _TRANSFERS.get(transfer), _PRIMARIES.get(primaries)
    return icc.matrix_profile(*space, curve) if curve and space else b""


def _points(flat: tuple[float, ...]) -> list[icc.Point]:
    return list(zip(flat[::2], flat[1::2], strict=True))


def to_srgb(pixels: Pixels, profile: bytes, *, grey: bool) -> Pixels:
    """Convert decoded and resized pixels (H, W, 3); `grey` says that the three channels are one.

    A profile of another kind of image is ignored, as browsers do. CMYK images are converted before, because the values
    of their inks are not available here.
    """
    found = conversion(profile)
    if found.transform is None or found.space == "CMYK" or (found.space == "L" and not grey):
        return pixels
    image = Image.fromarray(pixels[..., 0] if found.space == "L" else pixels)
    return np.array(found.apply(image))


def _changes_nothing(found: Conversion) -> bool:
    """Return whether the transform of RGB or grey is the identity, up to CLOSE levels, on a grid of colours."""
    if found.space == "CMYK":
        return False
    if found.space == "L":
        levels = np.arange(256, dtype=np.uint8)[None]
        expected = np.repeat(levels[..., None], 3, axis=2)
    else:
        steps = np.linspace(0, 255, 9).round().astype(np.uint8)
        levels = expected = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(1, -1, 3)
    converted = np.asarray(found.apply(Image.fromarray(levels))).astype(int)
    return int(np.abs(converted - expected).max()) <= CLOSE
