"""A window of Pillow's 8-bit bicubic resize, bit for bit, compiled: `model.preprocessing.resize` for pixels in memory.

In each of 16 lanes both passes sum four bytes times four weights: the same colour of four neighbours. The horizontal
pass takes four rows at a time: it arranges their pixels once into a line that stays in the cache, and writes its result
in the order that the vertical pass reads. Only the window is computed. `model.preprocessing.compiled.simd_bytes` has
the arithmetic.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit

from model.jit.compiler import compile_kernel, fields
from model.jit.intrinsics import load_int64
from model.jit.simd import prefetch
from model.preprocessing.compiled import simd_bytes as arithmetic
from model.preprocessing.compiled.filter_weights import GROUP, grouped_weights, pixel_weights
from model.preprocessing.compiled.simd_bytes import (
    BLOCK,
    LANES,
    across_rows,
    along_rows,
    load_pixels,
    load_weights,
    multiply_add,
    rounding_sums,
    shift_down,
    store_columns,
    store_lanes,
)
from model.preprocessing.resize import UPRIGHT, Axis, Pixels, Turn

_FIELDS = 21
_fields: Any = fields(_FIELDS)
_Table = ctypes.c_int64 * (2 + _FIELDS)


@dataclass(frozen=True, slots=True)
class _Plan:
    """Everything about a resize that depends only on the image's size and orientation."""

    stored: tuple[int, int]  # rows, columns
    wanted: tuple[int, int]
    reach: int  # end of the bytes that are read; may exceed the image
    start: int  # first byte that is read
    lines: int  # bytes of scratch memory for arranged rows
    between: int  # bytes of scratch memory for the result of the first pass
    numbers: tuple[int, ...]  # of the kernel's table, after the addresses
    tables: tuple[int, ...]  # addresses of the arrays in `kept`
    kept: tuple[Any, ...]


@lru_cache(maxsize=512)
def _plan(across: Axis, down: Axis, turn: Turn, digits: bool) -> _Plan | None:
    if any(axis.mostly_discarded or axis.source < pixel_weights(axis).per_pixel for axis in (across, down)):
        return None
    by_x, by_y = (turn.from_bottom, turn.from_right) if turn.swaps else (turn.from_right, turn.from_bottom)
    wide, tall = grouped_weights(across, digits, by_x), grouped_weights(down, digits, by_y)
    rows, columns = (wide, tall) if turn.swaps else (tall, wide)
    stored = (across.source, down.source) if turn.swaps else (down.source, across.source)
    stride = 3 * stored[1]
    x_step, y_step = (stride, 3) if turn.swaps else (3, stride)
    blocks, groups = (wide.stop - wide.first) // GROUP, (tall.stop - tall.first) // GROUP
    together = 16 if turn.swaps else 2  # groups of rows: with swapped axes they are neighbours in memory
    row = (GROUP * 3 * len(wide.groups) // (GROUP * BLOCK) + 1) * GROUP * BLOCK  # of the result of the first pass
    steps = stride, GROUP * x_step, GROUP * y_step, int(turn.swaps), together
    sizes = blocks, groups, len(wide.groups), row, wide.packed.shape[1], tall.packed.shape[1]
    kept = wide.groups, wide.packed, tall.groups, tall.packed
    return _Plan(
        stored,
        (down.wanted, across.wanted),
        (rows.stop - 1) * stride + 3 * columns.stop + LANES - 3 * GROUP,
        x_step * wide.first + y_step * tall.first,
        blocks * together * BLOCK,
        (groups + 1) * row + BLOCK,
        (*steps, *sizes, 3 * across.wanted, down.wanted),
        tuple(array.ctypes.data for array in kept),
        kept,
    )


class Resize:
    """The compiled resize. Construction compiles the kernel or loads it from the cache (see `model.jit.compiler`).

    Raises RuntimeError if the kernel cannot be compiled.
    """

    def __init__(self, cache_dir: Path | None = None) -> None:
        self._code = compile_kernel(_kernel(), cache_dir)
        self._run = self._code.ctypes

    @staticmethod
    def can(across: Axis, down: Axis, turn: Turn = UPRIGHT) -> bool:
        """Return whether these axes are supported: not too short for the vectors, and not mostly discarded."""
        return _plan(across, down, turn, arithmetic.VNNI) is not None

    @staticmethod
    def room_for(width: int) -> int:
        """Return the most bytes after an image of this width that may be read; they have no effect on the result."""
        return (GROUP - 1) * 3 * width + LANES

    def __call__(self, pixels: Pixels, across: Axis, down: Axis, turn: Turn = UPRIGHT, room: int = 0) -> Pixels:
        """Return the wanted (rows, columns, 3) of a resized image that is stored as (H, W, 3).

        The axes are those of the upright image, and must satisfy `can`. `room` bytes after the pixels may be read;
        where `room_for` is larger the pixels may be copied. Releases the GIL. Raises ValueError for pixels that do not
        fit the axes.
        """
        plan = _plan(across, down, turn, arithmetic.VNNI)
        if plan is None or pixels.shape != (*plan.stored, 3):
            raise ValueError(f"pixels of shape {pixels.shape} cannot be resized by {across} and {down}")
        if not pixels.flags.c_contiguous or plan.reach > pixels.nbytes + room:
            pixels = _with_room(pixels, plan.reach)
        size = 3 * plan.wanted[0] * plan.wanted[1]
        window = np.empty(size + BLOCK, np.uint8)  # the kernel writes whole blocks
        scratch = np.empty(plan.lines + plan.between + BLOCK, np.uint8)
        at = scratch.ctypes.data
        at += -at % BLOCK  # aligned to a cache line, so that no block crosses one
        places = pixels.ctypes.data + plan.start, *plan.tables, at, at + plan.lines, window.ctypes.data
        table = _Table(0, 0, *places, *plan.numbers)  # a name keeps it alive during the call
        self._run(ctypes.addressof(table))
        return window[:size].reshape(*plan.wanted, 3)


def _with_room(pixels: Pixels, size: int) -> Pixels:
    roomy = np.empty(max(size, pixels.size), np.uint8)
    roomy[: pixels.size] = pixels.reshape(-1)
    return roomy[: pixels.size].reshape(pixels.shape)


@njit(inline="always")
def _across(line: Any, step: Any, group: Any, weights: Any, count: Any) -> Any:
    """Compute one column of two groups of rows."""
    place = line + load_int64(group) * step
    a, b = rounding_sums(), rounding_sums()
    for k in range(count):
        spread = load_weights(weights + 16 * k)
        a = multiply_add(a, load_pixels(place + k * step), spread)
        b = multiply_add(b, load_pixels(place + k * step + BLOCK), spread)
    return shift_down(a), shift_down(b)


@njit(inline="always")
def _four_across(line: Any, step: Any, groups: Any, weights: Any, count: Any, put: Any, next_row: Any) -> Any:
    a, e = _across(line, step, groups, weights, count)
    b, f = _across(line, step, groups + 8, weights + count * 16, count)
    c, g = _across(line, step, groups + 16, weights + count * 32, count)
    d, h = _across(line, step, groups + 24, weights + count * 48, count)
    store_columns(put, a, b, c, d)
    store_columns(put + next_row, e, f, g, h)


@njit(inline="always")
def _down(place: Any, row: Any, weights: Any, count: Any, put: Any) -> Any:
    """Compute 64 bytes of one row."""
    a, b, c, d = rounding_sums(), rounding_sums(), rounding_sums(), rounding_sums()
    for k in range(count):
        spread, at = load_weights(weights + 16 * k), place + k * row
        a = multiply_add(a, load_pixels(at), spread)
        b = multiply_add(b, load_pixels(at + BLOCK), spread)
        c = multiply_add(c, load_pixels(at + 2 * BLOCK), spread)
        d = multiply_add(d, load_pixels(at + 3 * BLOCK), spread)
    store_lanes(put, shift_down(a), shift_down(b), shift_down(c), shift_down(d))


def _kernel() -> Any:
    def resize(table: Any) -> None:
        (
            _, source, x_groups, x_weights, y_groups, y_weights, lines, between, window, stride, block_step, group_step,
            swaps, together, blocks, groups, columns, row, x_count, y_count, width, height,
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
            ahead = source + (first + together) * group_step
            for x in range(0, columns, 4):
                if not swaps and 16 * x < 12 * blocks:
                    for r in range(4 * together):
                        prefetch(ahead + r * stride + 16 * x, 0)
                at, weights = x_groups + 8 * x, x_weights + x * x_count * 16
                for r in range(0, count, 2):
                    put = between + (first + r) * row + 12 * x
                    _four_across(lines + r * BLOCK, step, at, weights, x_count, put, row)
        for y in range(height):
            top, weights = between + load_int64(y_groups + 8 * y) * row, y_weights + y * y_count * 16
            for x in range(0, width, BLOCK):
                _down(top + 4 * x, row, weights, y_count, window + y * width + x)

    return resize
