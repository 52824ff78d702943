"""A window of Pillow's 8-bit bicubic resize, bit for bit, without computing the pixels outside it.

The horizontal pass runs first, independent of Pillow's version (13.0 changed its order). Where an axis is not much
longer than the window, Pillow's C code does the pass; where it is much longer (1x1000 becomes 256x256000), numpy
repeats Pillow's arithmetic for the wanted rows or columns alone. `model.preprocessing.recipe` chooses the window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
Ints = NDArray[np.int64]
Box = tuple[int, int, int, int]  # left, top, right, bottom

PRECISION_BITS = 32 - 8 - 2  # Pillow's fixed point: 8 bits of result, 2 of headroom
BICUBIC_SUPPORT = 2.0
MAX_DISCARD_RATIO = 4  # up to this ratio Pillow is faster, although it computes pixels that are discarded (measured)
BAND_BYTES = 2 << 20
CHUNK_VALUES = 1 << 17  # int32 sums that fit into the cache


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a resize: `source` pixels become `target`, of which first <= i < last are wanted."""

    source: int
    target: int
    first: int
    last: int

    @property
    def wanted(self) -> int:
        """Length of the window."""
        return self.last - self.first

    @property
    def mostly_discarded(self) -> bool:
        """Whether most of the resized axis would be discarded."""
        return self.target > MAX_DISCARD_RATIO * self.wanted

    def reach(self) -> tuple[int, int]:
        """Return the source pixels that the window depends on, as [start, stop)."""
        starts, stops = self.bounds()
        return int(starts[0]), int(stops[-1])

    def bounds(self) -> tuple[Ints, Ints]:
        """Return, per wanted pixel, the source pixels that it depends on (Pillow's xmin and xmax)."""
        centers, stretch = self._centers(), self._stretch()
        starts = np.trunc(centers - BICUBIC_SUPPORT * stretch + 0.5).astype(np.int64)
        stops = np.trunc(centers + BICUBIC_SUPPORT * stretch + 0.5).astype(np.int64)
        return np.maximum(starts, 0), np.minimum(stops, self.source)

    def weights(self) -> NDArray[np.int32]:
        """Return fixed-point coefficients (wanted, longest support), zero beyond a pixel's support."""
        starts, stops = self.bounds()
        sources = starts[:, None] + np.arange(int((stops - starts).max()))
        weights = _bicubic((sources - self._centers()[:, None] + 0.5) * (1.0 / self._stretch()))
        weights[sources >= stops[:, None]] = 0
        weights /= np.cumsum(weights, axis=1)[:, -1:]  # cumsum adds in Pillow's order, sum() does not
        return np.trunc(weights * (1 << PRECISION_BITS) + np.copysign(0.5, weights)).astype(np.int32)

    def _scale(self) -> float:
        return float(np.float32(self.source)) / self.target  # Pillow keeps the box in single precision

    def _stretch(self) -> float:
        return max(self._scale(), 1.0)

    def _centers(self) -> NDArray[np.float64]:
        return (np.arange(self.first, self.last, dtype=np.float64) + 0.5) * self._scale()


@dataclass(frozen=True, slots=True)
class Turn:
    """The flips and the rotation of an EXIF orientation."""

    method: Image.Transpose | None
    swaps: bool = False
    from_right: bool = False
    from_bottom: bool = False

    def source_box(self, box: Box, size: tuple[int, int]) -> Box:
        """Return the box in the stored image of (width, height) that corresponds to a box of the upright image."""
        left, top, right, bottom = (box[1], box[0], box[3], box[2]) if self.swaps else box
        if self.from_right:
            left, right = size[0] - right, size[0] - left
        if self.from_bottom:
            top, bottom = size[1] - bottom, size[1] - top
        return left, top, right, bottom


UPRIGHT = Turn(None)


def resize_window(read: Callable[[Box], Image.Image], across: Axis, down: Axis) -> Pixels:
    """Return the wanted (rows, columns, 3) of a resized image; `read` returns a box of the source as RGB."""
    strips = _horizontal(read, across, down.reach())
    if down.mostly_discarded:
        return resample(np.concatenate([np.asarray(strip) for _, strip in strips]), down)
    # Rows that no wanted row depends on stay black; Pillow's coefficients require the full height.
    canvas = Image.new("RGB", (across.wanted, down.source))
    for top, strip in strips:
        canvas.paste(strip, (0, top))
    tall = canvas.resize((across.wanted, down.target), Image.Resampling.BICUBIC)
    return np.asarray(tall.crop((0, down.first, across.wanted, down.last)))


def _horizontal(
    read: Callable[[Box], Image.Image], across: Axis, rows: tuple[int, int]
) -> Iterator[tuple[int, Image.Image]]:
    """The horizontal pass over some rows, in bands: yields (top row, its wanted columns)."""
    left, right = across.reach() if across.mostly_discarded else (0, across.source)
    step = max(1, BAND_BYTES // (4 * (right - left)))
    for top in range(rows[0], rows[1], step):
        band = read((left, top, right, min(top + step, rows[1])))
        yield top, _narrow(band, across)


def _narrow(band: Image.Image, across: Axis) -> Image.Image:
    if across.mostly_discarded:
        columns = np.asarray(band).transpose(1, 0, 2)
        return Image.fromarray(np.ascontiguousarray(resample(columns, across).transpose(1, 0, 2)))
    wide = band.resize((across.target, band.height), Image.Resampling.BICUBIC)
    return wide.crop((across.first, 0, across.last, band.height))


def resample(pixels: Pixels, axis: Axis) -> Pixels:
    """Resize the first dimension of `pixels`, which holds the source from `axis.reach()`, to the wanted window."""
    values = pixels.reshape(len(pixels), -1)
    indices = axis.bounds()[0] - axis.reach()[0]
    result = np.empty((axis.wanted, values.shape[1]), np.uint8)
    step = max(1, CHUNK_VALUES // axis.wanted)
    weights = axis.weights()
    for left in range(0, values.shape[1], step):
        part = slice(left, left + step)
        result[:, part] = _weigh(np.ascontiguousarray(values[:, part]), indices, weights)
    return result.reshape(axis.wanted, *pixels.shape[1:])


def _weigh(values: Pixels, starts: Ints, weights: NDArray[np.int32]) -> Pixels:
    """ImagingResample's inner loop: integer sums that start at one half, shifted right and clipped."""
    sums = np.full((len(starts), values.shape[1]), 1 << (PRECISION_BITS - 1), np.int32)
    for k in range(weights.shape[1]):
        rows = np.minimum(starts + k, len(values) - 1)  # clipped only where the weight is zero
        sums += weights[:, k, None] * values[rows]
    sums >>= PRECISION_BITS
    return np.clip(sums, 0, 255).astype(np.uint8)


def _bicubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pillow's filter (a = -0.5), operation by operation."""
    a = -0.5
    x = np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))
