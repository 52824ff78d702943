"""ICC profiles for tests: usual RGB spaces, grey with a gamma, and a small table for CMYK."""

from __future__ import annotations

import struct

import numpy as np

from model.preprocessing.icc import Curve, Point, gamma_curve, matrix_profile, profile_of

D65: Point = (0.3127, 0.3290)
# Chromaticities of red, green and blue, white point and tone curve.
SPACES: dict[str, tuple[tuple[Point, Point, Point], Point, Curve]] = {
    "Display P3": (((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)), D65, "srgb"),
    "Adobe RGB": (((0.640, 0.330), (0.210, 0.710), (0.150, 0.060)), D65, 2.19921875),
    "ProPhoto": (((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001)), (0.3457, 0.3585), 1.8),
}


def rgb_profile(name: str) -> bytes:
    """A profile of one of SPACES."""
    return matrix_profile(*SPACES[name])


def grey_profile(gamma: float) -> bytes:
    """Grey with a gamma."""
    return profile_of(b"GRAY", {b"kTRC": gamma_curve(gamma)})


def cmyk_profile() -> bytes:
    """Weak inks on white paper: a table of Lab with two points an axis."""
    grid = np.stack(np.meshgrid(*[[0.0, 1.0]] * 4, indexing="ij"), axis=-1).reshape(-1, 4)
    rgb = (1 - 0.8 * grid[:, :3]) * (1 - 0.9 * grid[:, 3:])
    light, a, b = 100 * np.cbrt(rgb.mean(axis=1)), 80 * (rgb[:, 0] - rgb[:, 1]), 80 * (rgb[:, 1] - rgb[:, 2])
    lab = np.stack((light * 2.55, a + 128, b + 128), axis=1).round().clip(0, 255).astype(np.uint8)
    ramp, identity = bytes(range(256)), struct.pack(">9i", *(65536 * int(i % 4 == 0) for i in range(9)))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + identity + 4 * ramp + lab.tobytes() + 3 * ramp
    return profile_of(b"CMYK", {b"A2B0": table}, space=b"Lab ")
