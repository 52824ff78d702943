"""How an encoded image is built, read from its bytes without decoding: size, memory, and whether it is an ordeal.

Decoders walk whatever a file holds, so a file of a few megabytes can keep one busy for half a minute: a hundred scans
over every pixel, a million empty chunks, runs of one pixel. Cameras and programs write nothing like it; such a file is
refused here, before Pillow sees it. The bounds keep every file that passes under five seconds at 100 megapixels.
TIFF has a module of its own, `tiff`.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass

from service import tiff
from service.errors import ImageTooComplex, UnsupportedImage
from service.shape import MOST_PARTS, MOST_SCANS, Shape

MOST_STRAY_BYTES = 1024  # between the segments of a JPEG; Pillow steps over each in Python
MOST_EXIF_BYTES = 1_000_000  # one segment of a JPEG holds 64 kB; thumbnails make it larger in other formats
# Pillow unpacks run lengths in Python, pixel by pixel.
MOST_RUN_PIXELS, MOST_RUN_BYTES = 8_000_000, 4_000_000


def measure(name: str, data: bytes) -> Shape:
    """The shape of a file of the format that its first bytes announce.

    Raises ImageTooComplex, UnsupportedImage; struct.error or IndexError where the file ends too early.
    """
    return _MEASURES[name](data)


# --- JPEG: segments, then scans with segments between them -------------------------------------------------------

WINDOW = 1 << 16  # bytes searched in one go, in a fraction of a millisecond
_MARKER = re.compile(rb"\xff([^\x00\xff])")
_AFTER_DATA = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")  # entropy-coded data holds FF 00 and restart markers only
_ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a length
_SCAN, _END = 0xDA, 0xD9
_FRAMES = {0xC0, 0xC1, 0xC2}
_OTHER_FRAMES = {0xC3, *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)}
_PROGRESSIVE = 0xC2


@dataclass(slots=True)
class _Jpeg:
    """What a walk over a JPEG found so far."""

    frame: bytes = b""
    kind: int = 0
    exif: int = 0
    scans: int = 0
    components: int = 0  # of all scans together


def _jpeg(data: bytes) -> Shape:
    found = _Jpeg()
    at, parts, stray = 2, 0, 0
    while marker := _next(_AFTER_DATA if found.scans else _MARKER, data, at):
        stray += 0 if found.scans else marker.start() - at
        _bound("JPEG", "stray bytes before its picture", stray, MOST_STRAY_BYTES)
        parts += 1
        _bound("JPEG", "segments", parts, MOST_PARTS)
        kind, at = marker[1][0], marker.end()
        if kind == _END and found.scans:
            break
        if kind not in _ALONE and kind != _END:
            at = _segment(data, at, kind, found)
    return _jpeg_shape(found)


def _next(marker: re.Pattern[bytes], data: bytes, at: int) -> re.Match[bytes] | None:
    """A window at a time: a search lets nobody else have Python's lock, and the event loop would wait for all of it."""
    while at < len(data):
        if found := marker.search(data, at, at + WINDOW + 1):  # one byte more, for a marker on the border
            return found
        at += WINDOW
    return None


def _segment(data: bytes, at: int, kind: int, found: _Jpeg) -> int:
    """Note what one segment says; where it ends."""
    length = max(2, int.from_bytes(data[at : at + 2], "big"))
    if kind == _SCAN:
        found.scans += 1
        found.components += data[at + 2]
        _bound("JPEG", "scans", found.scans, MOST_SCANS)
    elif kind in _FRAMES and not found.frame:
        found.kind, found.frame = kind, data[at + 2 : at + length]
    elif kind in _OTHER_FRAMES:
        raise UnsupportedImage("a JPEG image with arithmetic coding or without loss is not supported")
    elif kind == 0xE1 and data.startswith(b"Exif", at + 2):
        found.exif += length
        _bound("JPEG", "bytes of EXIF", found.exif, MOST_EXIF_BYTES)
    return at + length


def _jpeg_shape(found: _Jpeg) -> Shape:
    _, height, width, count = struct.unpack_from(">BHHB", found.frame)
    factors = [found.frame[7 + 3 * one] for one in range(count)]
    areas = [(factor >> 4) * (factor & 15) for factor in factors]
    most = max((factor >> 4 for factor in factors), default=1) * max((factor & 15 for factor in factors), default=1)
    coefficients = 2 * sum(areas) / max(1, most) if found.kind == _PROGRESSIVE else 0
    return Shape(width, height, (1 if count == 1 else 4) + coefficients, found.components)


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
    "JPEG": _jpeg,
    "PNG": _png,
    "WebP": _webp,
    "GIF": _gif,
    "BMP": _bmp,
    "TIFF": tiff.measure,
}
