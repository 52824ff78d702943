"""A wanted window of Pillow's 8-bit bicubic resize, bit for bit, compiled: `model.resize` for pixels in memory.

Both passes add up, in each of 16 lanes, four bytes times four weights: the same colour of four neighbours. Along the
rows four rows go together: their pixels are brought into that order once, into a line that stays in the cache, and so
is what the first pass gives for the second. What is computed is the window alone. `model.blocks` is the arithmetic.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit

from model import blocks as arithmetic
from model.blocks import (
    BLOCK,
    LANES,
    across_rows,
    along_rows,
    cut,
    half,
    int64,
    put_columns,
    put_lanes,
    read,
    spread_weights,
    weigh,
)
from model.jit import compiled, fields
from model.resize import UPRIGHT, Axis, Pixels, Turn
from model.resize_taps import GROUP, Lines, lines, taps

_fields: Any = fields(21)


def can(across: Axis, down: Axis) -> bool:
    """Whether these axes are for this module: others are too short for its vectors, or mostly thrown away."""
    return not any(axis.outgrown or axis.source < taps(axis).per_pixel for axis in (across, down))


def room_for(width: int) -> int:
    """How many bytes behind an image of this width may be read, at most; they weigh nothing."""
    return (GROUP - 1) * 3 * width + LANES


class Resize:
    """The compiled resize. Making it takes the compiler or its kept code (`model.jit`). Raises RuntimeError."""

    def __init__(self, cache_dir: Path | None = None) -> None:
        self._code = compiled(_kernel(), cache_dir)
        self._run = self._code.ctypes

    def __call__(self, pixels: Pixels, across: Axis, down: Axis, turn: Turn = UPRIGHT, room: int = 0) -> Pixels:
        """The wanted (rows, columns, 3) of a resized image, stored as (H, W, 3).

        The axes are those of the image after its turn, and such that `can` is true. Behind the pixels lie `room` bytes
        that may be read; where `room_for` wants more the pixels are copied. Releases the GIL.
        """
        stored = (across.source, down.source) if turn.swaps else (down.source, across.source)
        if pixels.shape != (*stored, 3) or not can(across, down):
            raise ValueError(f"pixels of shape {pixels.shape} cannot be resized by {across} and {down}")
        by_x, by_y = (turn.from_bottom, turn.from_right) if turn.swaps else (turn.from_right, turn.from_bottom)
        wide, tall = (lines(axis, arithmetic.VNNI, by) for axis, by in ((across, by_x), (down, by_y)))
        rows, columns = (wide, tall) if turn.swaps else (tall, wide)
        reach = 3 * ((rows.stop - 1) * pixels.shape[1] + columns.stop) + LANES - 3 * GROUP
        if not pixels.flags.c_contiguous or reach > pixels.nbytes + room:
            pixels = _with_room(pixels, reach)
        window = np.empty(3 * down.wanted * across.wanted + BLOCK, np.uint8)
        self._fill(window, 3 * across.wanted, pixels, wide, tall, turn.swaps)
        return window[:-BLOCK].reshape(down.wanted, across.wanted, 3)

    def _fill(self, window: Pixels, width: int, pixels: Pixels, wide: Lines, tall: Lines, swaps: bool) -> None:
        """`window` holds lines of `width` bytes, and a block more, which is written to and means nothing."""
        stride = 3 * pixels.shape[1]
        by_x, by_y = (stride, 3) if swaps else (3, stride)
        blocks, groups = (wide.stop - wide.first) // GROUP, (tall.stop - tall.first) // GROUP
        together = 16 if swaps else 2  # groups of rows: there neighbours lie beside each other
        row = (GROUP * 3 * len(wide.groups) // (GROUP * BLOCK) + 1) * GROUP * BLOCK  # of what lies between the passes
        lines, between = _aligned(blocks * together * BLOCK), _aligned((groups + 1) * row + BLOCK)
        arrays = wide.groups, wide.packed, tall.groups, tall.packed, lines, between, window
        steps = stride, GROUP * by_x, GROUP * by_y, int(swaps), together
        sizes = blocks, groups, len(wide.groups), row, wide.packed.shape[1], tall.packed.shape[1]
        start = pixels.ctypes.data + by_x * wide.first + by_y * tall.first
        numbers = start, *(a.ctypes.data for a in arrays), *steps, *sizes, width, (window.size - BLOCK) // width
        self._run(ctypes.addressof((ctypes.c_int64 * (2 + len(numbers)))(0, 0, *numbers)))


def _aligned(size: int) -> Pixels:
    """So many bytes, and more, from the start of a cache line on: none of the blocks in it straddles two."""
    memory = np.empty(size + BLOCK, np.uint8)
    return memory[-memory.ctypes.data % BLOCK :]


def _with_room(pixels: Pixels, size: int) -> Pixels:
    roomy = np.empty(max(size, pixels.size), np.uint8)
    roomy[: pixels.size] = pixels.reshape(-1)
    return roomy[: pixels.size].reshape(pixels.shape)


@njit(inline="always")
def _across(line: Any, step: Any, group: Any, weights: Any, taps: Any) -> Any:
    """One column of two groups of rows."""
    place = line + int64(group) * step
    a, b = half(), half()
    for k in range(taps):
        spread = spread_weights(weights + 16 * k)
        a = weigh(a, read(place + k * step), spread)
        b = weigh(b, read(place + k * step + BLOCK), spread)
    return cut(a), cut(b)


@njit(inline="always")
def _four_across(line: Any, step: Any, groups: Any, weights: Any, taps: Any, put: Any, next_row: Any) -> Any:
    a, e = _across(line, step, groups, weights, taps)
    b, f = _across(line, step, groups + 8, weights + taps * 16, taps)
    c, g = _across(line, step, groups + 16, weights + taps * 32, taps)
    d, h = _across(line, step, groups + 24, weights + taps * 48, taps)
    put_columns(put, a, b, c, d)
    put_columns(put + next_row, e, f, g, h)


@njit(inline="always")
def _down(place: Any, row: Any, weights: Any, taps: Any, put: Any) -> Any:
    """64 bytes of one row."""
    a, b, c, d = half(), half(), half(), half()
    for k in range(taps):
        spread, at = spread_weights(weights + 16 * k), place + k * row
        a = weigh(a, read(at), spread)
        b = weigh(b, read(at + BLOCK), spread)
        c = weigh(c, read(at + 2 * BLOCK), spread)
        d = weigh(d, read(at + 3 * BLOCK), spread)
    put_lanes(put, cut(a), cut(b), cut(c), cut(d))


def _kernel() -> Any:
    def resize(table: Any) -> None:
        (
            _, source, x_groups, x_weights, y_groups, y_weights, lines, between, window, stride, block_step, group_step,
            swaps, together, blocks, groups, columns, row, x_taps, y_taps, width, height,
        ) = _fields(table)  # fmt: skip
        step = together * BLOCK
        for first in range(0, groups, together):
            count = min(together, groups - first)
            for b in range(blocks):
                for r in range(count):
                    place = source + (first + r) * group_step + b * block_step
                    if swaps:
                        across_rows(lines + b * step + r * BLOCK, place, stride)
                    else:
                        along_rows(lines + b * step + r * BLOCK, place, stride)
            for x in range(0, columns, 4):
                at, weights = x_groups + 8 * x, x_weights + x * x_taps * 16
                for r in range(0, count, 2):
                    put = between + (first + r) * row + 12 * x
                    _four_across(lines + r * BLOCK, step, at, weights, x_taps, put, row)
        for y in range(height):
            top, weights = between + int64(y_groups + 8 * y) * row, y_weights + y * y_taps * 16
            for x in range(0, width, BLOCK):
                _down(top + 4 * x, row, weights, y_taps, window + y * width + x)

    return resize
