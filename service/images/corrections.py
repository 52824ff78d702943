"""Let Pillow decode an opened file, and correct what it is known to decode wrongly.

The model would also answer for a wrong picture, so a file is refused if it can be neither corrected nor decoded
correctly. `tests/service/images/test_oracle.py` compares the results with other decoders. This module does not import
Pillow: these functions use the image that `service.images.pillow` has opened.
"""

from __future__ import annotations

import struct
from typing import Any

Opened = Any  # PIL.Image.Image, or the subclass of its format


class RefusedError(ValueError):
    """A file whose picture would be wrong; its text continues "the TIFF image ..."."""


def load(image: Opened, data: bytes) -> Opened:
    """Decode the first frame of `data`, opened by Pillow as `image`. Raises RefusedError, and what Pillow raises."""
    match image.format:
        case "TIFF":
            return _tiff(image)
        case "BMP":
            return _bmp(image, data)
        case "GIF":
            return _first_frame(image)
        case "PNG":
            return _png(image, data)
        case "WEBP":
            return _webp(image, data)
        case "JXL" if not image.jpeg:  # the decoder has already applied the orientation of the codestream
            image.info.pop("exif", None)
    image.load()
    return image


# --- TIFF ---------------------------------------------------------------------------------------------------------

_BITS, _PHOTOMETRIC, _PLANES, _COLOUR_MAP, _INKS, _EXTRA, _SAMPLE_FORMAT = 258, 262, 284, 320, 332, 338, 339
_SUB_DIRECTORIES = (34665, 34853, 40965)  # EXIF, GPS, interoperability
_WHITE_IS_ZERO, _SEPARATED, _SEPARATE = 0, 5, 2
# Pillow copies plane n to byte n of a pixel. In these modes the n-th value is in another byte, or is stored
# differently.
_NOT_PLANE_BY_PLANE = {"LA": "grey and alpha", "La": "grey and alpha", "PA": "palette and alpha", "LAB": "L, a and b"}


def _tiff(image: Opened) -> Opened:
    tags, mode = image.tag_v2, image.mode
    if tags.get(_PLANES) == _SEPARATE:
        if mode in _NOT_PLANE_BY_PLANE:
            raise RefusedError(f"has {_NOT_PLANE_BY_PLANE[mode]} in separate planes")
        if mode == "RGBA" and _EXTRA not in tags:  # Pillow divides by alpha what was not multiplied
            raise RefusedError("has a fourth plane of unknown meaning")
    if tags.get(_PHOTOMETRIC) == _SEPARATED and tags.get(_INKS, 1) != 1:
        raise RefusedError("has other inks than cyan, magenta, yellow and black")
    white_is_zero = tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    if white_is_zero and mode == "F":
        raise RefusedError("has floating point values of which 0 is white")
    _ignore_sub_directories(image)
    image.tile = [tile._replace(args=(_native(tile.args[0]), *tile.args[1:])) for tile in image.tile]
    if mode in ("P", "PA") and max(tags[_COLOUR_MAP]) <= 255:
        image.palette.palette = bytes(tags[_COLOUR_MAP])  # 16-bit values by the standard; some programs write 8 bits
    image.load()
    if mode == "I" and tags.get(_SAMPLE_FORMAT, (1,))[0] == 1 and image.getextrema()[0] < 0:
        raise RefusedError("has 32-bit values above 2147483647")
    if mode == "La":
        return image.convert("LA")
    if tags.get(_BITS) == (12,):
        image = image.point(lambda value: value * (65535 / 4095))
    return image.point(lambda value: value * -1 + 65535) if white_is_zero and mode == "I;16" else image


def _ignore_sub_directories(image: Opened) -> None:
    """Remove them: Pillow would read all of them, no code uses them, and some pointers are wrong."""
    exif = image.getexif()
    for tag in _SUB_DIRECTORIES:
        exif.pop(tag, None)


def _native(raw_mode: str) -> str:
    """libtiff returns numbers in the machine's byte order; Pillow handles that only for unsigned ones."""
    return f"{raw_mode[:-2]}N{raw_mode[-1]}" if raw_mode.endswith(("BS", "BF")) else raw_mode


# --- BMP ----------------------------------------------------------------------------------------------------------

_BITFIELDS, _FIVE_BITS = 3, (0x7C00, 0x3E0, 0x1F, 0x8000)  # masks of red, green, blue and one bit of alpha


def _bmp(image: Opened, data: bytes) -> Opened:
    """Ignore alpha that is 0 everywhere: some programs do not set it. Windows and Firefox show such a file opaque."""
    size, bits, compression = (*struct.unpack_from("<I", data, 14), *struct.unpack_from("<HI", data, 28))
    if size >= 56 and (bits, compression) == (16, _BITFIELDS) and struct.unpack_from("<4I", data, 54) == _FIVE_BITS:
        image._mode = "RGBA"
        image.tile = [tile._replace(args=("BGRA;15", *tile.args[1:])) for tile in image.tile]
    image.load()
    if image.mode == "RGBA" and image.getbbox() is None:
        image.putalpha(255)
    return image


# --- PNG ----------------------------------------------------------------------------------------------------------


def _png(image: Opened, data: bytes) -> Opened:
    """Scale the transparent value or colour to 8 bits: Pillow scales only the pixels."""
    depth, key = data[24], image.info.get("transparency")
    if image.mode == "L" and depth < 8 and isinstance(key, int):
        image.info["transparency"] = key * 255 // ((1 << depth) - 1)
    if image.mode == "RGB" and depth == 16 and isinstance(key, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in key)
    return _first_frame(image)


# --- First frames that are smaller than the canvas: transparent around them, as in a browser -----------------------

_ANIMATION = 2  # a flag of VP8X


def _first_frame(image: Opened) -> Opened:
    frame = image.tile[0].extents
    image.load()
    if frame == (0, 0, *image.size):
        return image
    if image.mode.startswith("I"):
        raise RefusedError("has a first frame that is smaller than the image, and 16 bits")
    whole = image.convert("RGBA")
    alpha = whole.getchannel("A")
    inside = alpha.crop(frame)
    alpha.paste(0, (0, 0, *image.size))
    alpha.paste(inside, frame)
    whole.putalpha(alpha)
    return whole


def _webp(image: Opened, data: bytes) -> Opened:
    """The canvas around the first frame is transparent, whether or not the file says that it has transparency."""
    if data[12:16] == b"VP8X" and data[20] & _ANIMATION:
        image._mode = image.rawmode = "RGBA"
    image.load()
    return image
