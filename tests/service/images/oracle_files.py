"""One small picture, and PNG, BMP, GIF and WebP files of it that Pillow does not write, for `test_oracle`."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.service.images.slow_files import chunk

WIDTH, HEIGHT = 40, 24
INSIDE = (10, 6, 30, 18)  # where a first frame lies that is smaller than the canvas
Values = NDArray[Any]


def picture() -> NDArray[np.uint8]:
    """(HEIGHT, WIDTH, 4): a gradient in every channel and in alpha, without any symmetry."""
    down, across = np.mgrid[:HEIGHT, :WIDTH]
    red, green = across * 255 / (WIDTH - 1), down * 255 / (HEIGHT - 1)
    channels = [red, green, 255 - (red + green) / 2, np.clip(255 - 3 * down * across / 8, 0, 255)]
    return np.stack(channels, -1).astype(np.uint8)


def deepened(values: Values) -> Values:
    """The same values in 16 bits, to within one level of 8: high and low byte differ, so that their order matters."""
    return values.astype(np.uint16) << 8 | (values ^ 255) & 0x55


def on_white(colour: Values, alpha: Values) -> Values:
    """Straight colours, shown on white."""
    return 255 + (colour.astype(float) - 255) * (alpha / 255.0)


def packed(values: Values, bits: int) -> list[bytes]:
    """The rows of (height, width, samples) as bytes, the first sample in the highest bits."""
    if bits in (8, 16):
        return [row.astype(f">u{bits // 8}").tobytes() for row in values]
    single = values[..., None] >> np.arange(bits - 1, -1, -1) & 1
    return [row.tobytes() for row in np.packbits(single.reshape(len(values), -1).astype(np.uint8), axis=1)]


# --- PNG ----------------------------------------------------------------------------------------------------------

_PASSES = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]


def png(values: Values, bits: int, colour: int, *, interlaced: bool = False, before: bytes = b"") -> bytes:
    """A PNG with every filter in turn; `before` are chunks before the pixels."""
    step = max(1, values.shape[2] * bits // 8)
    data = b""
    for left, top, across, down in _PASSES if interlaced else [(0, 0, 1, 1)]:
        rows = packed(values[top::down, left::across], bits)
        for number, row in enumerate(rows):
            above = rows[number - 1] if number else bytes(len(row))
            data += bytes([number % 5]) + _filtered(number % 5, row, above, step)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, colour, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + _idat(data) + chunk(b"IEND", b"")


def _idat(data: bytes) -> bytes:
    return chunk(b"IDAT", zlib.compress(data))


def _filtered(kind: int, row: bytes, above: bytes, step: int) -> bytes:
    left, corner = bytes(step) + row, bytes(step) + above
    out = bytearray()
    for value, a, b, c in zip(row, left, above, corner, strict=False):
        nearest = min((abs(b - c), 0, a), (abs(a - c), 1, b), (abs(a + b - 2 * c), 2, c))[2]
        out.append((value - (0, a, b, (a + b) // 2, nearest)[kind]) & 255)
    return bytes(out)


def apng(*, default: bool, partial: bool) -> bytes:
    """An animation; with `default` its static picture is not one of its frames. Frames may be smaller than that."""
    rgb = picture()[..., :3]
    left, top, right, bottom = INSIDE if partial else (0, 0, WIDTH, HEIGHT)
    frame = struct.pack(">IIIIHHBB", right - left, bottom - top, left, top, 30, 1, 0, 0)
    first = struct.pack(">IIIIHHBB", WIDTH, HEIGHT, 0, 0, 30, 1, 0, 0)
    part = zlib.compress(b"".join(b"\0" + row.tobytes() for row in 255 - rgb[top:bottom, left:right]))
    control = chunk(b"acTL", struct.pack(">II", 1 if default else 2, 0))
    still = png(rgb, 8, 2, before=control + (b"" if default else chunk(b"fcTL", bytes(4) + first)))
    number = 0 if default else 1
    tail = chunk(b"fcTL", struct.pack(">I", number) + frame) + chunk(b"fdAT", struct.pack(">I", number + 1) + part)
    return still[:-12] + tail + still[-12:]


# --- BMP ----------------------------------------------------------------------------------------------------------


def bmp(
    values: Values,
    bits: int,
    *,
    header: int = 40,
    masks: tuple[int, ...] = (),
    colours: Values | None = None,
    top_down: bool = False,
    pixels: bytes | None = None,
    compression: int | None = None,
) -> bytes:
    """A bitmap of (height, width) numbers of `bits`; `pixels` are encoded ones, of a file with run lengths."""
    height, width = values.shape
    rows = packed(values[..., None], bits) if bits <= 8 else [row.astype("<u4").tobytes() for row in values]
    if bits in (16, 24):
        rows = [b"".join(row[at : at + bits // 8] for at in range(0, len(row), 4)) for row in rows]
    rows = [row + bytes(-len(row) % 4) for row in rows]
    body = b"".join(rows if top_down else rows[::-1]) if pixels is None else pixels
    if header == 12:
        head = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        kind = (3 if masks else 0) if compression is None else compression
        signed = -height if top_down else height
        head = struct.pack("<IiiHHIIiiII", header, width, signed, 1, bits, kind, len(body), 2835, 2835, 0, 0)
        inside = struct.pack(f"<{len(masks)}I", *masks)
        head += inside if header == 40 else inside.ljust(16, b"\0")[: header - 40]
        head += b"BGRs".ljust(header - len(head), b"\0") if header >= 108 else b""
    for colour in [] if colours is None else colours.tolist():
        head += bytes(colour[::-1]) + (b"" if header == 12 else b"\0")
    return b"BM" + struct.pack("<IHHI", 14 + len(head) + len(body), 0, 0, 14 + len(head)) + head + body


def run_lengths(values: Values, bits: int) -> bytes:
    """Rows as literal runs of 8 or 4 bits."""
    body = b""
    for row in values[::-1]:
        data = packed(row[None, :, None], bits)[0]
        body += bytes([0, len(row)]) + data + bytes(len(data) % 2) + b"\0\0"
    return body + b"\0\1"


# --- First frames that are smaller than the canvas ----------------------------------------------------------------


def _frame(mode: str) -> Image.Image:
    left, top, right, bottom = INSIDE
    return Image.fromarray(picture()[top:bottom, left:right, :3]).convert(mode)


def gif_partial(mode: str, **options: Any) -> bytes:
    """A GIF of one frame with nothing around it."""
    stream = io.BytesIO()
    _frame(mode).save(stream, "GIF", **options)
    data = bytearray(stream.getvalue())
    at = data.index(b"\x2c\0\0\0\0" + struct.pack("<HH", 20, 12))
    data[6:10] = struct.pack("<HH", WIDTH, HEIGHT)
    data[at + 1 : at + 5] = struct.pack("<HH", *INSIDE[:2])
    return bytes(data)


def webp_partial(*, alpha: bool, lossless: bool, frames: int = 1) -> bytes:
    """An animated WebP whose frames are smaller than its canvas; `alpha` is what its header says."""
    stream = io.BytesIO()
    _frame("RGB").save(stream, "WEBP", lossless=lossless, quality=100)
    left, top, right, bottom = INSIDE
    numbers = (left // 2, top // 2, right - left - 1, bottom - top - 1, 30_000)
    head = b"".join(number.to_bytes(3, "little") for number in numbers) + b"\0"
    size = (WIDTH - 1).to_bytes(3, "little") + (HEIGHT - 1).to_bytes(3, "little")
    body = _riff(b"VP8X", bytes([18 if alpha else 2, 0, 0, 0]) + size) + _riff(b"ANIM", bytes(6))
    body += _riff(b"ANMF", head + stream.getvalue()[12:]) * frames
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def _riff(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)
