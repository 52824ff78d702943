"""Files within every size limit that would keep a decoder busy for long, for `service.images.inspect_file`."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping

from PIL import Image

from tests.service.images.image_files import encode, photo

Build = Callable[[int], bytes]


def chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_chunks(count: int) -> bytes:
    """A PNG with `count` chunks of text."""
    data = encode(photo(), "PNG")
    return data[:33] + chunk(b"tEXt", b"a\0b") * count + data[33:]


def webp_chunks(count: int) -> bytes:
    """A WebP with `count` unknown chunks after the picture."""
    data = encode(photo(), "WEBP") + b"JUNK\0\0\0\0" * count
    return data[:4] + struct.pack("<I", len(data) - 8) + data[8:]


def jpeg_segments(count: int) -> bytes:
    """A JPEG with `count` empty segments."""
    data = encode(photo(), "JPEG")
    return data[:2] + b"\xff\xe5\x00\x02" * count + data[2:]


def jpeg_stray(count: int) -> bytes:
    """A JPEG with `count` fill bytes before its first segment."""
    data = encode(photo(), "JPEG")
    return data[:2] + b"\xff" * count + data[2:]


def jpeg_exif(count: int) -> bytes:
    """A JPEG whose EXIF is split into `count` segments of 64 kB."""
    data = encode(photo(), "JPEG")
    return data[:2] + (b"\xff\xe1\xff\xff" + b"Exif\0\0" + bytes(0xFFFF - 8)) * count + data[2:]


def jpeg_scans(count: int) -> bytes:
    """A progressive JPEG of `count` scans, with the last one repeated."""
    data = encode(Image.new("RGB", (64, 48), "grey"), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * (count - data.count(b"\xff\xda")) + b"\xff\xd9"


def resized_jpeg(data: bytes, width: int, height: int) -> bytes:
    """A progressive JPEG that claims another size."""
    at = data.index(b"\xff\xc2") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def jpeg_hidden_scans(count: int) -> bytes:
    """A JPEG of `count` scans after a comment that contains an end-of-image marker."""
    data = jpeg_scans(count)
    at = data.index(b"\xff\xda")
    at = data.index(b"\xff\xda", at + 2)
    return data[:at] + b"\xff\xfe\x00\x04\xff\xd9" + data[at:]


def after_palette(data: bytes) -> int:
    """The offset of a GIF's first block."""
    return 13 + (3 << (data[10] & 7) + 1)


def gif_blocks(count: int) -> bytes:
    """A GIF with `count` comment blocks before its picture."""
    data = encode(photo("P"), "GIF")
    at = after_palette(data)
    return data[:at] + b"!\xfe" + b"\x01x" * count + b"\0" + data[at:]


def gif_stray(count: int) -> bytes:
    """A GIF with `count` stray bytes before its picture."""
    data = encode(photo("P"), "GIF")
    at = after_palette(data)
    return data[:at] + b"x" * count + data[at:]


def bmp_runs(count: int, width: int = 4) -> bytes:
    """A run-length encoded BMP of `count` runs of one pixel."""
    body = b"\x01\x05" * count + b"\x00\x01"
    start = 14 + 40 + 1024
    height = max(1, count // width)
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(body), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + header + bytes(1024) + body


def tiff_directory(tags: Mapping[int, tuple[int, ...]], tail: bytes = b"") -> bytes:
    """A little-endian TIFF of LONG arrays; `tail` follows the directory and the arrays."""
    at = 8 + 2 + 12 * len(tags) + 4
    entries, arrays = b"", b""
    for tag, values in sorted(tags.items()):
        packed = struct.pack(f"<{len(values)}I", *values)
        entries += struct.pack("<HHI", tag, 4, len(values))
        entries += packed if len(values) == 1 else struct.pack("<I", at + len(arrays))
        arrays += b"" if len(values) == 1 else packed
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + arrays + tail


def tiff_strips(count: int) -> bytes:
    """A TIFF with `count` strips of one pixel, which all use the same byte."""
    strips = {273: (8,) * count, 279: (1,) * count}
    return tiff_directory({256: (1,), 257: (count,), 258: (8,), 259: (1,), 262: (1,), 277: (1,), 278: (1,)} | strips)


def tiff_overlapping(count: int, compression: int = 8, bit_order: int = 1) -> bytes:
    """A TIFF with `count` strips, which all use the same 4 kB."""
    strips = {266: (bit_order,), 273: (200 + 8 * count,) * count, 279: (4000,) * count}
    tags = {256: (1,), 257: (count,), 258: (8,), 259: (compression,), 262: (1,), 277: (1,), 278: (1,)}
    return tiff_directory(tags | strips, bytes(4300))


def bigtiff_tags(count: int) -> bytes:
    """A BigTIFF with `count` unknown tags."""
    head = struct.pack("<2sHHHQQ", b"II", 43, 8, 0, 16, count)
    return head + struct.pack("<HHQQ", 65000, 1, 1, 0) * count + bytes(8)
