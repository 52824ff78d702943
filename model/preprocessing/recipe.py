"""From a decoded image to the model's pixels: the preprocessing recipe as a frozen, callable value. Needs no torch.

`reference` mode treats colours as hustvl/Vim does; `friendly` mode also respects EXIF orientation, transparency and bit
depth. Normalising with `mean` and `std` is left to the model's runtime. The arithmetic of resizing is in
`model.preprocessing.resize`.
"""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
from PIL import ExifTags, Image

from model.errors import ConfigError, reject_unknown
from model.preprocessing import colour
from model.preprocessing.resize import UPRIGHT, Axis, Box, Pixels, Turn, resize_window

Mode = Literal["reference", "friendly"]
Crop = Literal["center", "full", "pad"]
UNTOUCHED = 32  # the reference neither resizes nor crops for input sizes up to this value


@dataclass(frozen=True, slots=True)
class Preprocess:
    """The reference's evaluation transform (vim/datasets.py) up to ToTensor: PIL image to uint8 (size, size, 3).

    `friendly` mode differs in four points: EXIF orientation is applied, transparency is shown on white, 16-bit values
    are scaled instead of clamped, and an embedded colour profile is converted to sRGB. Sizes up to 32 return the image
    in its own size.

    `crop` chooses the part of the image that the model receives: the centre, as in training; the whole image, squashed
    to a square ("full"); or the whole image on a black square ("pad"). It is chosen for each image, so it is not part
    of the written recipe. Raises ConfigError for fields that cannot be used.
    """

    size: int = 224
    crop_ratio: float = 0.875
    mode: Mode = "reference"
    interpolation: Literal["bicubic"] = "bicubic"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    crop: Crop = "center"

    def __post_init__(self) -> None:
        _check(self)
        for name in ("mean", "std"):
            object.__setattr__(self, name, _triple(name, getattr(self, name)))
        if min(self.std) <= 0:
            raise ConfigError(f"std must be positive, got {self.std}")

    def __call__(self, image: Image.Image) -> Pixels:
        """Return the image's pixels as the model receives them; a new, C-contiguous array."""
        source = _Source(image, self.mode)
        if self.resize is None:
            pixels = np.array(source.read((0, 0, *source.size)))
        else:
            across, down = self.axes(source.size)
            pixels = self.padded(resize_window(source.read, across, down), across, down)
        return self.in_srgb(pixels, embedded_profile(image), grey=image.mode in _GREY)

    def in_srgb(self, pixels: Pixels, profile: bytes, *, grey: bool) -> Pixels:
        """Convert preprocessed RGB pixels of an image with this ICC profile; `grey` says that it had one channel.

        Converting after the resize costs a millisecond; the result differs little from converting before it.
        """
        return colour.to_srgb(pixels, profile, grey=grey) if profile and self.mode == "friendly" else pixels

    def converts_inks(self, profile: bytes) -> bool:
        """Return whether CMYK pixels with this ICC profile must be converted before they are resized."""
        return self.mode == "friendly" and bool(profile) and colour.conversion(profile).is_for_inks

    def read(self, path: Path) -> Pixels:
        """Return the pixels of the first frame of a file. Raises whatever Pillow raises for it."""
        with Image.open(path) as image:
            return self(image)

    def padded(self, window: Pixels, across: Axis, down: Axis) -> Pixels:
        """Centre the window of a resized image on black where the image is smaller than the crop; C-contiguous."""
        if window.shape[:2] == (self.size, self.size) and window.flags.writeable and window.flags.c_contiguous:
            return window
        pixels = np.zeros((self.size, self.size, 3), np.uint8)
        left, top = _padding(across, self.size), _padding(down, self.size)
        pixels[top : top + down.wanted, left : left + across.wanted] = window
        return pixels

    def plain_turn(self, image: Image.Image) -> Turn | None:
        """Return the orientation to apply to an RGB, grey or CMYK image before it is resized.

        None for images that need more steps, and for recipes that do not resize.
        """
        if self.resize is None or image.mode not in ("RGB", "L", "CMYK"):
            return None
        if image.mode == "CMYK" and self.converts_inks(embedded_profile(image)):
            return None
        return ORIENTATIONS.get(_orientation(image), UPRIGHT) if self.mode == "friendly" else UPRIGHT

    @property
    def resize(self) -> int | None:
        """Length of the short side before the crop; None if images keep their size."""
        return None if self.size <= UNTOUCHED else int(self.size / self.crop_ratio)

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as JSON-ready values, with the derived `resize`."""
        values = dataclasses.asdict(self)
        del values["crop"]
        if self.mode == "friendly":
            values["colours"] = "sRGB"  # the fingerprint differs from that of versions that did not convert profiles
        return values | {"resize": self.resize, "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocess:
        """The inverse of `to_dict`. Raises ConfigError for unknown fields and for a contradictory `resize`."""
        fields = {field.name for field in dataclasses.fields(cls)} - {"crop"}
        reject_unknown(values, fields | {"resize", "colours"}, "preprocessing field")
        recipe = cls(**{name: value for name, value in values.items() if name in fields})
        if values.get("resize", recipe.resize) != recipe.resize:
            raise ConfigError(
                f"resize {values['resize']!r} contradicts size {recipe.size} and crop_ratio {recipe.crop_ratio}, "
                f"which give {recipe.resize}"
            )
        return recipe

    def axes(self, size: tuple[int, int]) -> tuple[Axis, Axis]:
        """Return (across, down): how an image of (width, height) is resized, and the wanted window.

        Only for recipes that resize.
        """
        assert self.resize is not None
        if self.crop != "center":
            return self._whole(size)
        short = self.resize
        long = int(short * max(size) / min(size))
        width, height = (short, long) if size[0] <= size[1] else (long, short)
        return _centered(size[0], width, self.size), _centered(size[1], height, self.size)

    def _whole(self, size: tuple[int, int]) -> tuple[Axis, Axis]:
        width, height = self.size, self.size
        if self.crop == "pad":
            width, height = (max(1, round(self.size * side / max(size))) for side in size)
        return Axis(size[0], width, 0, width), Axis(size[1], height, 0, height)


def _check(recipe: Preprocess) -> None:
    size, ratio = recipe.size, recipe.crop_ratio
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ConfigError(f"size must be a positive integer, got {size!r}")
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 < ratio < math.inf:
        raise ConfigError(f"crop_ratio must be a positive number, got {ratio!r}")
    if size / ratio < 1:
        raise ConfigError(f"crop_ratio {ratio} of size {size} leaves no pixel to resize to")
    if recipe.mode not in get_args(Mode):
        raise ConfigError(f"mode must be one of {', '.join(get_args(Mode))}, got {recipe.mode!r}")
    if recipe.crop not in get_args(Crop):
        raise ConfigError(f"crop must be one of {', '.join(get_args(Crop))}, got {recipe.crop!r}")
    if recipe.crop != "center" and size <= UNTOUCHED:
        raise ConfigError(f"crop {recipe.crop!r} needs a model of more than {UNTOUCHED} px: smaller ones do not resize")
    if recipe.interpolation != "bicubic":
        raise ConfigError(f"interpolation must be bicubic, as in the reference, got {recipe.interpolation!r}")


def _triple(name: str, values: Any) -> tuple[float, ...]:
    numbers = values if isinstance(values, (tuple, list)) else ()
    if len(numbers) != 3 or not all(isinstance(value, (int, float)) and math.isfinite(value) for value in numbers):
        raise ConfigError(f"{name} must be three numbers, one per channel, got {values!r}")
    return tuple(float(value) for value in numbers)


def _centered(source: int, target: int, crop: int) -> Axis:
    """CenterCrop's window, rounded half to even as in torchvision, or all of a side shorter than the crop."""
    if target <= crop:
        return Axis(source, target, 0, target)
    first = round((target - crop) / 2)
    return Axis(source, target, first, first + crop)


def _padding(axis: Axis, crop: int) -> int:
    return (crop - axis.wanted) // 2  # torchvision's center_crop pads first, rounding down


class _Source:
    """An image read upright and in RGB, one box at a time, so that no second full copy of it is created."""

    def __init__(self, image: Image.Image, mode: Mode) -> None:
        image.load()
        friendly = mode == "friendly"
        self._image = image
        self._turn = ORIENTATIONS.get(_orientation(image)) if friendly else None
        self._white = _white_level(image) if friendly else None
        inks = colour.conversion(embedded_profile(image)) if friendly and image.mode == "CMYK" else None
        self._inks = inks if inks is not None and inks.is_for_inks else None
        swapped = self._turn is not None and self._turn.swaps
        self.size = (image.height, image.width) if swapped else image.size

    def read(self, box: Box) -> Image.Image:
        part = self._image.crop(self._turn.source_box(box, self._image.size) if self._turn else box)
        rgb = self._rgb(part)
        return rgb.transpose(self._turn.method) if self._turn and self._turn.method is not None else rgb

    def _rgb(self, part: Image.Image) -> Image.Image:
        if self._inks is not None:
            return self._inks.apply(part)
        if self._white is None:
            return _plain_rgb(part)
        if part.mode in _DEEP:
            return _scaled(part, self._white)
        return _on_white(part) if part.mode in _CLEAR and part.has_transparency_data else _plain_rgb(part)


ORIENTATIONS = {
    2: Turn(Image.Transpose.FLIP_LEFT_RIGHT, from_right=True),
    3: Turn(Image.Transpose.ROTATE_180, from_right=True, from_bottom=True),
    4: Turn(Image.Transpose.FLIP_TOP_BOTTOM, from_bottom=True),
    5: Turn(Image.Transpose.TRANSPOSE, swaps=True),
    6: Turn(Image.Transpose.ROTATE_270, swaps=True, from_bottom=True),
    7: Turn(Image.Transpose.TRANSVERSE, swaps=True, from_right=True, from_bottom=True),
    8: Turn(Image.Transpose.ROTATE_90, swaps=True, from_right=True),
}
_BROKEN_EXIF = (struct.error, SyntaxError, ValueError, TypeError, LookupError, OSError)  # raised by Pillow's parser
_GREY = {"1", "L", "LA", "La", "I;16", "I;16L", "I;16B", "I;16N", "I", "F"}
_DEEP = {"I;16", "I;16L", "I;16B", "I;16N", "I", "F"}
_CLEAR = {"1", "L", "P", "RGB", "LA", "La", "PA", "RGBA", "RGBa"}


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except _BROKEN_EXIF:
        return 1  # damaged metadata must not prevent decoding
    return value if isinstance(value, int) else 1


def embedded_profile(image: Image.Image) -> bytes:
    """Return the ICC profile of an image, or one for its code points (`cicp`) or PNG chunks; empty if it has none."""
    if "cicp" in image.info:
        return colour.cicp_profile(*image.info["cicp"])
    found = image.info.get("icc_profile")
    return found if isinstance(found, bytes) and found else colour.png_profile(image.info)


def _white_level(image: Image.Image) -> float:
    """Return the value of white: 65535, or without a fixed range the smallest usual one that is large enough."""
    if image.mode not in ("I", "F"):
        return 65535.0
    high = cast(tuple[float, float], image.getextrema())[1]
    usual = (65535.0,) if image.mode == "I" else (1.0, 255.0, 65535.0)
    return next((white for white in usual if high <= white), high if math.isfinite(high) else 65535.0)


def _plain_rgb(part: Image.Image) -> Image.Image:
    """Pillow's own conversion: alpha is dropped, 16-bit values are clamped."""
    part.info.pop("transparency", None)  # does not change the pixels, but avoids warnings of Pillow
    return part if part.mode == "RGB" else part.convert("RGB")


def _on_white(part: Image.Image) -> Image.Image:
    clear = part.convert("RGBA")
    white = Image.new("RGB", part.size, "white")
    white.paste(clear, mask=clear)
    return white


def _scaled(part: Image.Image, white: float) -> Image.Image:
    values = np.asarray(part)
    levels = np.rint(np.nan_to_num(np.clip(values, 0, white)) * (255.0 / white)).astype(np.uint8)
    key = part.info.get("transparency")
    if isinstance(key, int):
        levels[values == key] = 255
    return Image.fromarray(levels).convert("RGB")
