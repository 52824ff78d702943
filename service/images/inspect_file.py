"""How an encoded image is built, read from its bytes without decoding: size, memory, and whether it is an ordeal.

Decoders walk whatever a file holds, so a file of a few megabytes can keep one busy for half a minute: a hundred scans
over every pixel, a million empty chunks, runs of one pixel. Cameras and programs write nothing like it; such a file is
refused here, before Pillow sees it. The bounds keep every file that passes under five seconds at 100 megapixels.
JPEG and TIFF have modules of their own, `segments` and `tiff`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from service.errors import ImageTooComplex, UnsupportedImage
from service.images import inspect_jpeg, inspect_tiff
from service.images.header import MOST_PARTS, Shape

# Pillow unpacks run lengths in Python, pixel by pixel.
MOST_RUN_PIXELS, MOST_RUN_BYTES = 8_000_000, 4_000_000


def measure(name: str, data: bytes) -> Shape:
    """The shape of a file of the format that its first bytes announce.

    Raises ImageTooComplex, UnsupportedImage; struct.error or IndexError where the file ends too early.
    """
    return _MEASURES[name](data)


# --- PNG and WebP: chunks -----------------------------------------------------------------------------------------


def _png(data: bytes) -> Shape:
    at, parts = 8, 0
    while at + 8 <= len(data):
        parts += 1
        _bound("PNG", "chunks", parts, MOST_PARTS)
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    grey = colour in (0, 3)
    return Shape(width, height, 4 if not grey else 2 if depth == 16 else 1)


def _webp(data: bytes) -> Shape:
    at, parts = 12, 0
    while at + 8 <= len(data):
        parts += 1
        _bound("WebP", "chunks", parts, MOST_PARTS)
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8 + size + size % 2
    return Shape(*_webp_size(data), 16)  # two canvases, Python's bytes, Pillow's image


def _webp_size(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


# --- GIF: blocks up to the first picture --------------------------------------------------------------------------

_EXTENSION, _PICTURE, _TRAILER = 0x21, 0x2C, 0x3B


def _gif(data: bytes) -> Shape:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + (3 << (flags & 7) + 1 if flags & 128 else 0)
    parts = 0
    while (kind := data[at]) not in (_PICTURE, _TRAILER):
        parts += 1
        at += 1
        if kind == _EXTENSION:
            at, parts = _past_blocks(data, at + 1, parts)
        _bound("GIF", "blocks before its first picture", parts, MOST_PARTS)
    if kind == _TRAILER:
        raise UnsupportedImage("the GIF image holds no picture")
    left, top, across, down = struct.unpack_from("<HHHH", data, at + 1)
    return Shape(max(width, left + across), max(height, top + down), 1)


def _past_blocks(data: bytes, at: int, parts: int) -> tuple[int, int]:
    while data[at]:
        at += 1 + data[at]
        parts += 1
        _bound("GIF", "blocks before its first picture", parts, MOST_PARTS)
    return at + 1, parts


# --- BMP ----------------------------------------------------------------------------------------------------------

_RUN_LENGTHS = (1, 2)


def _bmp(data: bytes) -> Shape:
    (header,) = struct.unpack_from("<I", data, 14)
    if header == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        return Shape(width, height, 1 if bits <= 8 else 4)
    width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
    shape = Shape(abs(width), abs(height), 1 if bits <= 8 else 4)
    if compression not in _RUN_LENGTHS:
        return shape
    _bound("run-length encoded BMP", "pixels", shape.pixels, MOST_RUN_PIXELS)
    _bound("run-length encoded BMP", "bytes", len(data), MOST_RUN_BYTES)
    return Shape(shape.width, shape.height, 3)


def _bound(name: str, what: str, found: int, most: int) -> None:
    if found > most:
        raise ImageTooComplex(f"the {name} image has more than {most} {what}; save it anew with another program")


_MEASURES: dict[str, Callable[[bytes], Shape]] = {
    "JPEG": inspect_jpeg.measure,
    "PNG": _png,
    "WebP": _webp,
    "GIF": _gif,
    "BMP": _bmp,
    "TIFF": inspect_tiff.measure,
}
