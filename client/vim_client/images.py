"""What the client accepts as an image, and how it becomes the bytes of an image file."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Image = str | os.PathLike[str] | bytes | NDArray[np.uint8] | Any  # Any: a PIL image, without needing Pillow

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff")


def encoded(image: Image) -> bytes:
    """The bytes of an image file. Raises OSError, or TypeError for anything that is not an image."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | os.PathLike):
        return Path(image).read_bytes()
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise TypeError(f"pixels must be uint8 (H, W, 3), got {image.dtype} {image.shape}")
        image = _picture(image)
    if not hasattr(image, "save"):
        raise TypeError(f"an image is a path, bytes, a PIL image or an array, not {type(image).__name__}")
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


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
