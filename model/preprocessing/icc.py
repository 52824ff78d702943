"""ICC profiles of RGB spaces that are known by their primaries and a gamma (ICC.1:2004-10, matrix and tone curve)."""

from __future__ import annotations

import functools
import struct

import numpy as np
from numpy.typing import NDArray

Point = tuple[float, float]  # x, y of CIE 1931
Matrix = NDArray[np.float64]

SRGB_POINTS: tuple[Point, Point, Point] = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
SRGB_WHITE: Point = (0.3127, 0.3290)
_D50 = (0.9642, 1.0, 0.8249)
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_CURVE_POINTS = 1024


@functools.lru_cache(16)
def matrix_profile(points: tuple[Point, Point, Point], white: Point, gamma: float | None) -> bytes:
    """Return a profile for the primaries red, green and blue, the white point, and a gamma; None is sRGB's curve.

    Raises ValueError for primaries that are no triangle.
    """
    try:
        columns = _to_xyz(points, white).T
    except (np.linalg.LinAlgError, ZeroDivisionError) as error:
        raise ValueError(f"primaries {points} with white {white} are no colour space") from error
    curve = _srgb_curve() if gamma is None else gamma_curve(gamma)
    tags = {name: _xyz(column) for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns, strict=True)}
    return profile_of(b"RGB ", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve))


def profile_of(kind_of_colour: bytes, tags: dict[bytes, bytes], space: bytes = b"XYZ ") -> bytes:
    """Return a profile, version 2.4, with these tags; `space` is the connection space."""
    description = b"desc\0\0\0\0" + struct.pack(">I", 1) + bytes(79)
    tags = {b"desc": description, b"wtpt": _xyz(np.array(_D50)), b"cprt": b"text\0\0\0\0\0"} | tags
    table, body, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head = struct.pack(">I4s4B", start + len(body), b"lcms", 2, 0x40, 0, 0) + b"mntr" + kind_of_colour + space
    head += bytes(12) + b"acsp" + bytes(28) + _fixed(*_D50)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def gamma_curve(gamma: float) -> bytes:
    """Return the tag of a tone curve."""
    return _table([round(256 * gamma)])


def _to_xyz(points: tuple[Point, Point, Point], white: Point) -> Matrix:
    """RGB -> XYZ, adapted to D50 (Bradford)."""
    primaries = np.array([[x / y, 1.0, (1 - x - y) / y] for x, y in points]).T
    source = np.array([white[0] / white[1], 1.0, (1 - white[0] - white[1]) / white[1]])
    linear = primaries * np.linalg.solve(primaries, source)
    scale = np.diag((_BRADFORD @ np.array(_D50)) / (_BRADFORD @ source))
    adapted: Matrix = np.linalg.inv(_BRADFORD) @ scale @ _BRADFORD @ linear
    if not np.isfinite(adapted).all() or np.abs(adapted).max() > 100:
        raise ZeroDivisionError
    return adapted


def _srgb_curve() -> bytes:
    x = np.linspace(0, 1, _CURVE_POINTS)
    linear = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    return _table([int(value) for value in (65535 * linear).round()])


def _table(values: list[int]) -> bytes:
    """A curve: one value is a gamma in 8.8 fixed point, more are samples."""
    return b"curv\0\0\0\0" + struct.pack(f">I{len(values)}H", len(values), *values)


def _xyz(values: Matrix) -> bytes:
    return b"XYZ \0\0\0\0" + _fixed(*values)


def _fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(65536 * value)) for value in values)
