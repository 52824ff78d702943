"""Read the header of an image file without decoding it: size, memory, and whether decoding is too expensive.

Decoders read all parts of a file, so a file of a few megabytes can take half a minute: a hundred scans
over every pixel, a million empty chunks, runs of one pixel. No camera or usual program writes such files; they are
refused here, before Pillow opens them. With these limits an accepted file of 100 megapixels takes under five seconds.
JPEG and TIFF have their own modules: `service.images.inspect_jpeg` and `service.images.inspect_tiff`.
"""

from __future__ import annotations

import struct

from service.errors import ImageTooComplex, UnsupportedImage
from service.images import inspect_bmff, inspect_jpeg, inspect_jxl, inspect_tiff
from service.images.formats import unsupported
from service.images.header import MAX_PARTS, Cicp, Header

# Pillow unpacks run lengths in Python, pixel by pixel.
MAX_RUN_PIXELS, MAX_RUN_BYTES = 8_000_000, 4_000_000


def inspect(name: str, data: bytes) -> Header:
    """Read the header of a file in the format `name`, which its first bytes announce.

    Raises ImageTooComplex, UnsupportedImage; struct.error or IndexError where the file ends too early.
    """
    match name:
        case "JPEG":
            return inspect_jpeg.inspect(data)
        case "PNG":
            return _png(data)
        case "WebP":
            return _webp(data)
        case "GIF":
            return _gif(data)
        case "BMP":
            return _bmp(data)
        case "TIFF":
            return inspect_tiff.inspect(data)
        case "AVIF" | "HEIC":
            return inspect_bmff.inspect(name, data)
        case "JPEG XL":
            return inspect_jxl.inspect(data)
    raise AssertionError(f"not an accepted format: {name}")


_ALPHA_ADDED = 6  # bytes for each pixel when a frame is smaller than the canvas: RGBA, and alpha twice
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type


# --- PNG and WebP: chunks -----------------------------------------------------------------------------------------


def _png(data: bytes) -> Header:
    at, parts, animated, cicp = 8, 0, False, None
    while at + 8 <= len(data):
        parts += 1
        _limit("PNG", "chunks", parts, MAX_PARTS)
        kind = data[at + 4 : at + 8]
        animated = animated or kind == b"acTL"
        if kind == b"cICP" and at + 10 <= len(data):
            cicp = cicp or Cicp(data[at + 8], data[at + 9])
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    if data[12:16] == b"CgBI":  # written by Xcode: blue and red exchanged, alpha multiplied in, no zlib header
        raise unsupported("a PNG image with a CgBI chunk, for iOS only, is not supported")
    if data[12:16] != b"IHDR":
        raise unsupported("the PNG image does not begin with its header")
    width, height, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    grey = colour in (0, 3)
    packed = depth * _CHANNELS.get(colour, 4) / 8 * (1.25 if interlaced else 1)
    stored = 4 if not grey else 2 if depth == 16 else 1
    return Header(width, height, stored + (_ALPHA_ADDED if animated else 0), packed_bytes=packed, cicp=cicp)


def _webp(data: bytes) -> Header:
    at, parts = 12, 0
    while at + 8 <= len(data):
        parts += 1
        _limit("WebP", "chunks", parts, MAX_PARTS)
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8 + size + size % 2
    return Header(*_webp_size(data), 16)  # two canvases, Python's bytes, Pillow's image


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


def _gif(data: bytes) -> Header:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + (3 << (flags & 7) + 1 if flags & 128 else 0)
    parts = 0
    while (kind := data[at]) not in (_PICTURE, _TRAILER):
        parts += 1
        at += 1
        if kind == _EXTENSION:
            at, parts = _skip_blocks(data, at + 1, parts)
        _limit("GIF", "blocks before its first picture", parts, MAX_PARTS)
    if kind == _TRAILER:
        raise UnsupportedImage("the GIF image holds no picture")
    left, top, across, down = struct.unpack_from("<HHHH", data, at + 1)
    partial = (left, top, across, down) != (0, 0, width, height)
    return Header(max(width, left + across), max(height, top + down), 1 + (_ALPHA_ADDED if partial else 0))


def _skip_blocks(data: bytes, at: int, parts: int) -> tuple[int, int]:
    while data[at]:
        at += 1 + data[at]
        parts += 1
        _limit("GIF", "blocks before its first picture", parts, MAX_PARTS)
    return at + 1, parts


# --- BMP ----------------------------------------------------------------------------------------------------------

_RUN_LENGTHS = (1, 2)


def _bmp(data: bytes) -> Header:
    (header,) = struct.unpack_from("<I", data, 14)
    if header == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        return Header(width, height, 1 if bits <= 8 else 4)
    width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
    found = Header(abs(width), abs(height), 1 if bits <= 8 else 4)
    if compression not in _RUN_LENGTHS:
        return found
    _limit("run-length encoded BMP", "pixels", found.pixels, MAX_RUN_PIXELS)
    _limit("run-length encoded BMP", "bytes", len(data), MAX_RUN_BYTES)
    return Header(found.width, found.height, 3)


def _limit(name: str, what: str, found: int, most: int) -> None:
    if found > most:
        raise ImageTooComplex(f"the {name} image has more than {most} {what}; save it again with another program")
