"""ICC profiles for tests, built by hand: matrices with a gamma, grey with a gamma, and a small table for CMYK."""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

D50 = (0.9642, 1.0, 0.8249)
# Chromaticities of red, green, blue and white, and the gamma.
SPACES = {
    "Display P3": ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.3127, 0.3290), 2.2),
    "Adobe RGB": ((0.640, 0.330), (0.210, 0.710), (0.150, 0.060), (0.3127, 0.3290), 2.19921875),
    "ProPhoto": ((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001), (0.3457, 0.3585), 1.8),
}
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def rgb_profile(name: str) -> bytes:
    """A matrix profile of one of SPACES."""
    *points, white, gamma = SPACES[name]
    columns = _matrix(points, white).T
    tags = {key: _xyz(column) for key, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns, strict=True)}
    curve = _gamma(gamma)
    return _profile(b"RGB ", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve))


def grey_profile(gamma: float) -> bytes:
    """Grey with a gamma."""
    return _profile(b"GRAY", {b"kTRC": _gamma(gamma)})


def cmyk_profile() -> bytes:
    """Inks that absorb one third of red, green or blue less than the ideal ones; a table with two points an axis."""
    grid = np.stack(np.meshgrid(*[[0.0, 1.0]] * 4, indexing="ij"), axis=-1).reshape(-1, 4)
    rgb = (1 - 0.8 * grid[:, :3]) * (1 - 0.9 * grid[:, 3:])
    lab = _lab(rgb)
    ramp = bytes(range(256))
    head = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + struct.pack(">9i", *(65536 * int(i % 4 == 0) for i in range(9)))
    return _profile(b"CMYK", {b"A2B0": head + 4 * ramp + lab.tobytes() + 3 * ramp}, space=b"Lab ", kind=b"prtr")


def _lab(rgb: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Linear RGB as grey-ish Lab of 8 bits: lightness from the mean, colour from the differences."""
    light = 100 * np.cbrt(rgb.mean(axis=1))
    a, b = 80 * (rgb[:, 0] - rgb[:, 1]), 80 * (rgb[:, 1] - rgb[:, 2])
    return np.stack((light * 2.55, a + 128, b + 128), axis=1).round().clip(0, 255).astype(np.uint8)


def _matrix(points: list[tuple[float, float]], white: tuple[float, float]) -> NDArray[np.float64]:
    """RGB -> XYZ adapted to D50, as in ICC.1 annex E (Bradford)."""
    primaries = np.array([[x / y, 1.0, (1 - x - y) / y] for x, y in points]).T
    source = np.array([white[0] / white[1], 1.0, (1 - white[0] - white[1]) / white[1]])
    linear = primaries * np.linalg.solve(primaries, source)
    scale = np.diag((_BRADFORD @ np.array(D50)) / (_BRADFORD @ source))
    adapted: NDArray[np.float64] = np.linalg.inv(_BRADFORD) @ scale @ _BRADFORD @ linear
    return adapted


def _fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(65536 * value)) for value in values)


def _xyz(values: NDArray[np.float64]) -> bytes:
    return b"XYZ \0\0\0\0" + _fixed(*values)


def _gamma(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(256 * gamma)) + b"\0\0"


def _profile(space_of: bytes, tags: dict[bytes, bytes], space: bytes = b"XYZ ", kind: bytes = b"mntr") -> bytes:
    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78)
    tags = {b"desc": text, b"wtpt": b"XYZ \0\0\0\0" + _fixed(*D50), b"cprt": b"text\0\0\0\0none\0"} | tags
    table, body, at = b"", b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        padded = content + bytes(-len(content) % 4)
        table += name + struct.pack(">II", at + len(body), len(content))
        body += padded
    size = at + len(body)
    head = struct.pack(">I", size) + b"lcms" + bytes([2, 0x40, 0, 0]) + kind + space_of + space + bytes(12) + b"acsp"
    head += bytes(28) + _fixed(*D50) + bytes(128)
    return head[:128] + struct.pack(">I", len(tags)) + table + body
