"""Pictures for the client tests, made with the standard library only, because a client's environment has no Pillow."""

from __future__ import annotations

import base64
import struct
import zlib

WIDTH, HEIGHT = 90, 70


def pixels(seed: int = 0) -> bytes:
    """RGB, row-major: HEIGHT x WIDTH x 3."""
    return bytes(
        (x * (3 + seed) + y * 5 + channel * 40 * (1 + seed)) % 256
        for y in range(HEIGHT)
        for x in range(WIDTH)
        for channel in range(3)
    )


def picture(seed: int = 0) -> bytes:
    """The picture as a PNG file."""
    rows, raw = WIDTH * 3, pixels(seed)
    filtered = b"".join(b"\0" + raw[start : start + rows] for start in range(0, len(raw), rows))
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 2, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(filtered)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, body) for kind, body in parts)


def data_uri(data: bytes) -> str:
    """The picture as a data URI, as OpenAI's clients send images."""
    return "data:image/png;base64," + base64.b64encode(data).decode()


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
