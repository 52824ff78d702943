"""What the client accepts as an image, and how it becomes the bytes of an image file."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vim_client.http import ClientError

Image = str | os.PathLike[str] | bytes | NDArray[np.uint8] | Any  # Any: a PIL image, without needing Pillow

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff")


# The modes of a PNG. Other modes are converted to one of these without loss, or to RGB as the server converts them.
_PNG = {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"}
_AS = {"La": "LA", "RGBa": "RGBA", "PA": "RGBA", "I;16L": "I", "I;16B": "I", "I;16N": "I"}
_TIFF = {"I", "F"}  # 32 bits
_CLEAR = {"LA", "RGBA", "P"}
_ORIENTATION = 0x0112
_BROKEN_EXIF = (struct.error, SyntaxError, ValueError, TypeError, LookupError, OSError)  # raised by Pillow's parser

MAX_BYTES = 20 * 1024 * 1024  # the server's default limit of a body
_QUALITIES = (95, 85, 75)
_WEBP_SIDE = 16_383


class ImageError(ClientError, OSError):
    """An image cannot be read or encoded; `errno` and `filename` as of any OSError."""


def encoded(image: Image) -> bytes:
    """The bytes of an image file. Raises ImageError, or TypeError for anything that is not an image.

    A PIL image is sent without loss and with its EXIF orientation, so it gets the answer of its file: as PNG, or as
    TIFF for 32-bit pixels. Above MAX_BYTES it is sent with loss: as JPEG, or as WebP if it has transparency.
    """
    if isinstance(image, bytes):
        return image
    try:
        if isinstance(image, str | os.PathLike):
            return Path(image).read_bytes()
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise TypeError(f"pixels must be uint8 (H, W, 3), got {image.dtype} {image.shape}")
            image = _picture(image)
        if not hasattr(image, "save"):
            raise TypeError(f"an image is a path, bytes, a PIL image or an array, not {type(image).__name__}")
        return _file(image)
    except OSError as error:
        raise ImageError(error.errno, error.strerror or str(error), error.filename) from None


def _file(image: Any) -> bytes:
    image.load()  # applies the orientation of a TIFF and removes the tag
    about = {"exif": exif} if (exif := _orientation(image)) else {}
    if image.mode not in _PNG | _TIFF:
        image = image.convert(_AS.get(image.mode, "RGB"))
    if image.mode in _TIFF:
        return _saved(image, "TIFF", compression="tiff_adobe_deflate", **about)
    file = _saved(image, "PNG", compress_level=1, icc_profile=None, **about)
    return file if len(file) <= MAX_BYTES or image.mode == "I;16" else _smaller(image, about)


def _smaller(image: Any, about: dict[str, Any]) -> bytes:
    """The first file that is small enough, else the smallest one; the server may refuse that."""
    clear = image.mode in _CLEAR and image.has_transparency_data
    file = b""
    for quality in _QUALITIES:
        if clear and max(image.size) <= _WEBP_SIDE:
            file = _saved(image.convert("RGBA"), "WEBP", quality=quality, method=0, exact=True, **about)
        else:
            file = _saved(image.convert("RGB"), "JPEG", quality=quality, subsampling=0, **about)
        if len(file) <= MAX_BYTES:
            break
    return file


def _saved(image: Any, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _orientation(image: Any) -> Any:
    """EXIF data with the orientation alone; None if the image is stored upright."""
    try:
        exif = image.getexif()
        value = exif.get(_ORIENTATION, 1)
    except _BROKEN_EXIF:
        return None
    if not isinstance(value, int) or value not in range(2, 9):
        return None
    alone = type(exif)()
    alone[_ORIENTATION] = value
    return alone


def find_images(folder: str | Path) -> list[Path]:
    """The files below a folder with the suffix of an image, sorted by path, without hidden files and folders."""
    found = (path for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _picture(pixels: NDArray[np.uint8]) -> Any:
    try:
        import PIL.Image
    except ImportError as error:
        raise ImportError("sending numpy pixels needs Pillow: pip install pillow") from error
    return PIL.Image.fromarray(pixels)
