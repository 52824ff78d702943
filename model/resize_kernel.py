"""A wanted window of Pillow's 8-bit bicubic resize, bit for bit, compiled: `model.resize` for pixels in memory.

Four bytes a pixel, so that a vector holds whole pixels: horizontally four neighbours of one row at once, vertically
four columns. What it computes is the window alone, and the rows between the two passes never leave the cache.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numpy.typing import NDArray

from model.jit import compiled, fields
from model.resize import PRECISION_BITS, UPRIGHT, Axis, Pixels, Turn
from model.vectors import emitted, register

LANES = 16  # bytes: four pixels of four channels
GROUP = 4

_INTS = ir.VectorType(ir.IntType(32), LANES)
_vector = register("int32x16", _INTS)


def can(across: Axis, down: Axis) -> bool:
    """Whether these axes are for this module: others are too short for its vectors, or mostly thrown away."""
    return not any(axis.outgrown or axis.source < _taps(axis).taps for axis in (across, down))


class Resize:
    """The compiled resize. Making it takes the compiler or its kept code (`model.jit`). Raises RuntimeError."""

    def __init__(self, cache_dir: Path | None = None) -> None:
        self._code = compiled(_straight(), cache_dir), compiled(_swapped(), cache_dir)
        self._straight, self._swapped = (code.ctypes for code in self._code)

    def __call__(self, pixels: Pixels, across: Axis, down: Axis, turn: Turn = UPRIGHT) -> Pixels:
        """The wanted (rows, columns, 3) of a resized image, stored as (H, W, 4), whose fourth channel is not looked at.

        The axes are those of the image after its turn, and such that `can` is true. Releases the GIL.
        """
        stored = (across.source, down.source) if turn.swaps else (down.source, across.source)
        if pixels.shape != (*stored, 4) or not can(across, down):
            raise ValueError(f"pixels of shape {pixels.shape} cannot be resized by {across} and {down}")
        by_x, by_y = (turn.from_bottom, turn.from_right) if turn.swaps else (turn.from_right, turn.from_bottom)
        run = self._through_columns if turn.swaps else self._through_rows
        return run(np.ascontiguousarray(pixels), _taps(across, by_x), _taps(down, by_y))

    def _through_rows(self, pixels: Pixels, wide: _Taps, tall: _Taps) -> Pixels:
        columns = -(-len(wide.starts) // GROUP) * GROUP
        first, stop = tall.reach
        between = np.zeros((stop - first, columns, 4), np.uint8)
        window = np.empty((len(tall.starts), columns, 3), np.uint8)
        _call(
            self._straight,
            (pixels, wide.starts, wide.spread, tall.starts, tall.weights, between, window),
            (pixels.shape[1], len(wide.starts), wide.taps, tall.taps, first, stop - first, columns, len(tall.starts)),
        )
        return window[:, : len(wide.starts)] if columns != len(wide.starts) else window

    def _through_columns(self, pixels: Pixels, wide: _Taps, tall: _Taps) -> Pixels:
        first, stop = tall.reach
        between = np.empty((len(wide.starts), stop - first, 4), np.uint8)
        window = np.empty((len(tall.starts), len(wide.starts), 3), np.uint8)
        _call(
            self._swapped,
            (pixels, wide.starts, wide.weights, tall.starts, tall.spread, between, window),
            (pixels.shape[1], len(wide.starts), wide.taps, tall.taps, first, stop - first, len(tall.starts)),
        )
        return window


def _call(function: Any, arrays: tuple[NDArray[Any], ...], sizes: tuple[int, ...]) -> None:
    table = (ctypes.c_int64 * (2 + len(arrays) + len(sizes)))(0, 0, *(a.ctypes.data for a in arrays), *sizes)
    function(ctypes.addressof(table))


class _Taps(NamedTuple):
    """Pillow's coefficients of an axis: equally many for each wanted pixel, from `starts` on, the needless ones 0."""

    starts: NDArray[np.int64]
    weights: NDArray[np.int32]  # (wanted, count), count a multiple of GROUP
    spread: NDArray[np.int32]  # each weight once for each channel
    reach: tuple[int, int]  # the source pixels that are read, as [first, stop)

    @property
    def taps(self) -> int:
        """How many for each wanted pixel."""
        return int(self.weights.shape[1])


@lru_cache(maxsize=512)
def _taps(axis: Axis, mirrored: bool = False) -> _Taps:
    weights = axis.weights()
    missing = -weights.shape[1] % GROUP
    weights = np.pad(weights, ((0, 0), (0, missing)))
    count = weights.shape[1]
    wanted_starts = axis.bounds()[0]
    starts = np.maximum(0, np.minimum(wanted_starts, axis.source - count))
    shifts = wanted_starts - starts
    for row in np.flatnonzero(shifts):  # a few at the far end of the source
        weights[row] = np.roll(weights[row], shifts[row])  # what is rolled around are zeros
    if mirrored:  # sums of whole numbers do not depend on their order
        starts, weights = axis.source - starts - count, weights[:, ::-1]
    weights = np.ascontiguousarray(weights)
    reach = int(starts.min()), int(starts.max()) + count
    return _Taps(np.ascontiguousarray(starts), weights, np.repeat(weights, 4, axis=1), reach)


@emitted
def _half(typing_context: Any) -> Any:
    """What Pillow starts a sum with, to round it; of four neighbours' sums only one may have it."""
    return _vector(), lambda context, builder, signature, args: ir.Constant(_INTS, [1 << (PRECISION_BITS - 1)] * LANES)


@emitted
def _nothing(typing_context: Any) -> Any:
    """Sums of zero."""
    return _vector(), lambda context, builder, signature, args: ir.Constant(_INTS, [0] * LANES)


def _at(builder: Any, address: Any, kind: Any) -> Any:
    return builder.inttoptr(address, ir.PointerType(kind))


@emitted
def _weigh(typing_context: Any, sums: Any, place: Any, weights: Any) -> Any:
    """Sums plus 16 bytes times 16 weights, both at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        byte = ir.VectorType(ir.IntType(8), LANES)
        pixels = builder.zext(builder.load(_at(builder, args[1], byte), align=1, typ=byte), _INTS)
        factors = builder.load(_at(builder, args[2], _INTS), align=4, typ=_INTS)
        return builder.add(args[0], builder.mul(pixels, factors))

    return _vector(_vector, types.int64, types.int64), codegen


@emitted
def _weigh_by_one(typing_context: Any, sums: Any, place: Any, weight: Any) -> Any:
    """Sums plus 16 bytes at an address times the one weight at another."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        byte, one = ir.VectorType(ir.IntType(8), LANES), ir.IntType(32)
        pixels = builder.zext(builder.load(_at(builder, args[1], byte), align=1, typ=byte), _INTS)
        undefined, zeros = ir.Constant(_INTS, ir.Undefined), ir.Constant(_INTS, [0] * LANES)
        first = builder.insert_element(undefined, builder.load(_at(builder, args[2], one), align=4, typ=one), one(0))
        return builder.add(args[0], builder.mul(pixels, builder.shuffle_vector(first, undefined, zeros)))

    return _vector(_vector, types.int64, types.int64), codegen


def _clipped(builder: Any, sums: Any, lanes: int) -> Any:
    """Pillow's clip8: shifted down, then between 0 and 255, as bytes."""
    kind = ir.VectorType(ir.IntType(32), lanes)
    zero, most = (ir.Constant(kind, [value] * lanes) for value in (0, 255))
    levels = builder.ashr(sums, ir.Constant(kind, [PRECISION_BITS] * lanes))
    levels = builder.select(builder.icmp_signed("<", levels, zero), zero, levels)
    levels = builder.select(builder.icmp_signed(">", levels, most), most, levels)
    return builder.trunc(levels, ir.VectorType(ir.IntType(8), lanes))


def _picked(builder: Any, vector: Any, lanes: list[int]) -> Any:
    mask = ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes)
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), mask)


def _one_pixel(builder: Any, sums: Any) -> Any:
    """Four neighbours' parts added up: four bytes."""
    eight = builder.add(_picked(builder, sums, [*range(8)]), _picked(builder, sums, [*range(8, 16)]))
    four = builder.add(_picked(builder, eight, [*range(4)]), _picked(builder, eight, [*range(4, 8)]))
    half = ir.Constant(four.type, [1 << (PRECISION_BITS - 1)] * 4)
    return _clipped(builder, builder.add(four, half), 4)


@emitted
def _put_pixel(typing_context: Any, place: Any, sums: Any) -> Any:
    """The sum of four neighbours' parts as one pixel of four bytes, at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pixel = _one_pixel(builder, args[1])
        builder.store(pixel, _at(builder, args[0], pixel.type), align=1)
        return context.get_dummy_value()

    return types.none(types.int64, _vector), codegen


@emitted
def _put_colours(typing_context: Any, place: Any, sums: Any) -> Any:
    """The same as three bytes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pixel = _one_pixel(builder, args[1])
        for i in range(3):
            byte = builder.extract_element(pixel, ir.IntType(32)(i))
            address = builder.add(args[0], args[0].type(i))
            builder.store(byte, _at(builder, address, byte.type), align=1)
        return context.get_dummy_value()

    return types.none(types.int64, _vector), codegen


@emitted
def _put_whole(typing_context: Any, place: Any, sums: Any) -> Any:
    """Four pixels of four bytes, at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pixels = _clipped(builder, args[1], LANES)
        builder.store(pixels, _at(builder, args[0], pixels.type), align=1)
        return context.get_dummy_value()

    return types.none(types.int64, _vector), codegen


@emitted
def _put_pixels(typing_context: Any, place: Any, sums: Any) -> Any:
    """Four pixels as three bytes each, at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        colours = [4 * pixel + colour for pixel in range(4) for colour in range(3)]
        pixels = _picked(builder, _clipped(builder, args[1], LANES), colours)
        builder.store(pixels, _at(builder, args[0], pixels.type), align=1)
        return context.get_dummy_value()

    return types.none(types.int64, _vector), codegen


@emitted
def _int64(typing_context: Any, place: Any) -> Any:
    """The number at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(_at(builder, args[0], ir.IntType(64)), align=8, typ=ir.IntType(64))

    return types.int64(types.int64), codegen


_straight_fields: Any = fields(15)
_swapped_fields: Any = fields(14)


def _straight() -> Any:
    """First along the stored rows, then along the columns."""
    G = GROUP

    def resize(table: Any) -> None:
        (
            _, source, x_starts, x_weights, y_starts, y_weights, between, window,
            width, wanted, x_taps, y_taps, first, rows, columns, height,
        ) = _straight_fields(table)  # fmt: skip
        for r in range(rows):
            row = source + (first + r) * width * 4
            for x in range(wanted):
                place = row + _int64(x_starts + 8 * x) * 4
                sums = _nothing()
                for k in range(0, x_taps, G):
                    sums = _weigh(sums, place + 4 * k, x_weights + 16 * (x * x_taps + k))
                _put_pixel(between + (r * columns + x) * 4, sums)
        for y in range(height):
            top = between + (_int64(y_starts + 8 * y) - first) * columns * 4
            for x in range(0, columns, G):
                sums = _half()
                for k in range(y_taps):
                    sums = _weigh_by_one(sums, top + (k * columns + x) * 4, y_weights + 4 * (y * y_taps + k))
                _put_pixels(window + (y * columns + x) * 3, sums)

    return resize


def _swapped() -> Any:
    """The same for an image whose rows are the stored columns: the first pass goes along those."""
    G = GROUP

    def resize_turned(table: Any) -> None:
        (
            _, source, x_starts, x_weights, y_starts, y_weights, between, window,
            width, wanted, x_taps, y_taps, first, columns, height,
        ) = _swapped_fields(table)  # fmt: skip
        for x in range(wanted):
            top = source + (_int64(x_starts + 8 * x) * width + first) * 4
            for group in range(0, columns, G):
                at = min(group, columns - G)  # the last one overlaps its neighbour
                sums = _half()
                for k in range(x_taps):
                    sums = _weigh_by_one(sums, top + (k * width + at) * 4, x_weights + 4 * (x * x_taps + k))
                _put_whole(between + (x * columns + at) * 4, sums)
            for y in range(height):
                place = between + (x * columns + _int64(y_starts + 8 * y) - first) * 4
                sums = _nothing()
                for k in range(0, y_taps, G):
                    sums = _weigh(sums, place + 4 * k, y_weights + 16 * (y * y_taps + k))
                _put_colours(window + (y * wanted + x) * 3, sums)

    return resize_turned
