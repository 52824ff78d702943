"""Pictures of nothing in particular, each made from a number: what `in_domain` of the demo model is set against.

Textures (1/f noise), scenes of overlapping things ("dead leaves"), gradients, stripes, and a few shapes on a plain
ground.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float64]]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def background(number: int, size: int) -> Pixels:
    """The picture with this number, uint8 (size, size, 3)."""
    rng = np.random.default_rng(number)
    make = (_noise, _leaves, _gradient, _stripes, _shapes)[number % 5]
    return np.clip(make(rng, size), 0, 255).astype(np.uint8)


def _colour(rng: np.random.Generator) -> Floats:
    return rng.integers(0, 256, 3).astype(np.float64)


def _grid(size: int) -> tuple[Floats, Floats]:
    rows, columns = np.mgrid[0:size, 0:size] / size
    return columns, rows


def _plain(rng: np.random.Generator, size: int) -> Floats:
    return np.broadcast_to(_colour(rng), (size, size, 3)).copy()


def _noise(rng: np.random.Generator, size: int) -> Floats:
    frequencies = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None])
    frequencies[0, 0] = 1
    spectrum = np.fft.fft2(rng.normal(size=(size, size, 3)), axes=(0, 1))
    noise = np.fft.ifft2(spectrum / frequencies[..., None] ** rng.uniform(0.5, 2), axes=(0, 1)).real
    noise = noise @ rng.normal(size=(3, 3))
    picture: Floats = _colour(rng) + noise / noise.std() * rng.uniform(20, 80)
    return picture


def _leaves(rng: np.random.Generator, size: int) -> Floats:
    picture = _plain(rng, size)
    for _ in range(rng.integers(20, 300)):
        _draw(rng, picture, 0.5 * rng.uniform(0.03, 1) ** 2 + 0.02)
    return picture


def _shapes(rng: np.random.Generator, size: int) -> Floats:
    picture = _plain(rng, size)
    for _ in range(rng.integers(1, 8)):
        _draw(rng, picture, rng.uniform(0.03, 0.4))
    return picture


def _draw(rng: np.random.Generator, picture: Floats, radius: float) -> None:
    """Draw an ellipse or a rectangle."""
    columns, rows = _grid(len(picture))
    x, y, aspect = rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0.3, 3)
    across, down = np.abs(columns - x), np.abs(rows - y) * aspect
    inside = np.hypot(across, down) < radius if rng.random() < 0.5 else (across < radius) & (down < radius)
    picture[inside] = _colour(rng)


def _gradient(rng: np.random.Generator, size: int) -> Floats:
    if rng.random() < 0.3:
        return _plain(rng, size)
    columns, rows = _grid(size)
    slope = columns * rng.normal() + rows * rng.normal()
    share = ((slope - slope.min()) / np.ptp(slope))[..., None]
    picture: Floats = _colour(rng) * share + _colour(rng) * (1 - share)
    return picture


def _stripes(rng: np.random.Generator, size: int) -> Floats:
    if rng.random() < 0.3:
        return rng.integers(0, 256, (size, size, 3)).astype(np.float64)
    columns, rows = _grid(size)
    wave = np.sin((columns * rng.normal() + rows * rng.normal()) * rng.uniform(5, 120))
    checks = np.sin(rows * rng.uniform(5, 120)) if rng.random() < 0.5 else 1.0
    return np.where((wave * checks > 0)[..., None], _colour(rng), _colour(rng))
