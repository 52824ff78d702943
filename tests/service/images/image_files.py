"""Image files for the tests: valid ones of every format and mode, and hostile ones."""

from __future__ import annotations

import io
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

MODES = {
    "JPEG": ["L", "RGB", "CMYK", "YCbCr"],
    "MPO": ["RGB"],
    "PNG": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
    "WEBP": ["RGB", "RGBA"],
    "GIF": ["1", "L", "P", "RGB"],
    "BMP": ["1", "L", "P", "RGB", "RGBA"],
    "TIFF": ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"],
}
WRITTEN_ELSEWHERE = Path(__file__).parents[2] / "data" / "formats"  # HEIC and JPEG XL
FILES = [(form, mode) for form, modes in MODES.items() for mode in modes]


def photo(mode: str = "RGB") -> Image.Image:
    """A smooth picture with different values in every channel."""
    grey = Image.radial_gradient("L").resize((64, 48))
    colour = Image.merge("RGB", [grey, grey.transpose(Image.Transpose.FLIP_LEFT_RIGHT), grey.point(lambda v: 255 - v)])
    if mode in ("I;16", "I"):
        return Image.fromarray(np.asarray(grey, np.uint16) * 257).convert(mode)
    return colour.convert(mode)


def encode(image: Image.Image, form: str, **options: Any) -> bytes:
    """The image as a file."""
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds a few bytes of pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(100_000)))
        + chunk(b"IEND", b"")
    )


def tiff(tags: dict[int, int], pixels: bytes) -> bytes:
    """A little-endian TIFF of LONG tags; the value -1 is replaced by the offset of the pixels."""
    offset = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(
        struct.pack("<HHII", tag, 4, 1, offset if value == -1 else value) for tag, value in sorted(tags.items())
    )
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + pixels


def boxed(*brands: bytes) -> bytes:
    """The first box of an ISO media file."""
    body = b"ftyp" + brands[0] + bytes(4) + b"".join(brands[1:])
    return struct.pack(">I", len(body) + 4) + body + bytes(100)


def gif_frame_beyond_its_screen() -> bytes:
    """A 64x48 screen whose frame claims 60,000x60,000."""
    data = encode(photo("P"), "GIF")
    start = data.index(b",\x00\x00\x00\x00\x40\x00\x30\x00")
    return data[: start + 5] + struct.pack("<HH", 60_000, 60_000) + data[start + 9 :]


def webp_canvas() -> bytes:
    """An animation whose canvas claims 16,383x16,383."""
    data = encode(photo(), "WEBP", save_all=True, append_images=[photo().rotate(90)])
    return data[:24] + (16_382).to_bytes(3, "little") * 2 + data[30:]


def tiff_tile() -> bytes:
    """16x16 pixels stored as a tile of 20,000x20,000: 400 MB unpacked from 400 kB."""
    packed = zlib.compress(bytes(20_000 * 2_000), 9)
    tags = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: 20_000, 323: 20_000, 324: -1, 325: len(packed)}
    return tiff(tags, packed)


def bmp_header() -> bytes:
    """A bitmap that claims 50,000x50,000."""
    data = encode(photo(), "BMP")
    return data[:18] + struct.pack("<ii", 50_000, -50_000) + data[26:]


def jpeg_header() -> bytes:
    """A JPEG that claims 65,500x65,500."""
    data = encode(photo(), "JPEG")
    start = data.index(b"\xff\xc0") + 5
    return data[:start] + struct.pack(">HH", 65_500, 65_500) + data[start + 4 :]


BOMBS = [gif_frame_beyond_its_screen, webp_canvas, tiff_tile, bmp_header, jpeg_header]


def mutations(seed: int, count: int) -> list[bytes]:
    """Damaged copies of good files."""
    rng = random.Random(seed)
    good = [encode(photo(mode), form) for form, mode in (*FILES, ("AVIF", "RGB"), ("AVIF", "RGBA"))]
    good += [path.read_bytes() for path in sorted(WRITTEN_ELSEWHERE.iterdir())]
    damaged = []
    for _ in range(count):
        data = bytearray(rng.choice(good))
        for _ in range(rng.choice([1, 2, 8])):
            at = rng.randrange(min(len(data), rng.choice([64, 512, len(data)])))
            data[at : at + 1] = rng.choice([b"", bytes([rng.randrange(256)]), b"\xff", b"\x00", rng.randbytes(4)])
        damaged.append(bytes(data))
    return damaged
