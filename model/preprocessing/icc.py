"""ICC profiles of RGB spaces that are known by their primaries and a gamma (ICC.1:2004-10, matrix and tone curve)."""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Point = tuple[float, float]  # x, y of CIE 1931
Matrix = NDArray[np.float64]
Curve = float | Literal["srgb", "pq", "hlg"]  # a gamma, or the name of a transfer function

SRGB_POINTS: tuple[Point, Point, Point] = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
SRGB_WHITE: Point = (0.3127, 0.3290)
_D50 = (0.9642, 1.0, 0.8249)
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_CURVE_POINTS = 1024


@functools.lru_cache(16)
def matrix_profile(points: tuple[Point, Point, Point], white: Point, curve: Curve) -> bytes:
    """Return a profile for the primaries red, green and blue, the white point, and a tone curve.

    Raises ValueError for primaries that do not form a triangle.
    """
    try:
        columns = _to_xyz(points, white).T
    except (np.linalg.LinAlgError, ZeroDivisionError) as error:
        raise ValueError(f"primaries {points} with white {white} do not define a colour space") from error
    tag = gamma_curve(curve) if isinstance(curve, float) else _table_of(_LINEAR[curve])
    tags = {name: _xyz(column) for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns, strict=True)}
    return profile_of(b"RGB ", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), tag))


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


def _srgb(signal: Matrix) -> Matrix:
    linear: Matrix = np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)
    return linear


def _pq(signal: Matrix) -> Matrix:
    """SMPTE ST 2084, of which the reference white has 203 cd/m2 (ITU-R BT.2408)."""
    root = signal ** (32 / 2523)
    ratio = np.maximum(root - 107 / 128, 0) / (2413 / 128 - 2392 / 128 * root)
    linear: Matrix = ratio ** (8192 / 1305) * (10_000 / 203)
    return linear


def _hlg(signal: Matrix) -> Matrix:
    """ARIB STD-B67 on a display of 1000 cd/m2, channel by channel; the reference white is at 75 % (ITU-R BT.2408)."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    white = (np.exp((0.75 - c) / a) + b) / 12
    linear: Matrix = (scene / white) ** 1.2
    return linear


_LINEAR: dict[str, Callable[[Matrix], Matrix]] = {"srgb": _srgb, "pq": _pq, "hlg": _hlg}


def _table_of(linear: Callable[[Matrix], Matrix]) -> bytes:
    levels = np.minimum(linear(np.linspace(0, 1, _CURVE_POINTS)), 1)
    return _table([int(value) for value in (65535 * levels).round()])


def _table(values: list[int]) -> bytes:
    """A curve: one value is a gamma in 8.8 fixed point, more are samples."""
    return b"curv\0\0\0\0" + struct.pack(f">I{len(values)}H", len(values), *values)


def _xyz(values: Matrix) -> bytes:
    return b"XYZ \0\0\0\0" + _fixed(*values)


def _fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(65536 * value)) for value in values)
