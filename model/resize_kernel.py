"""A wanted window of Pillow's 8-bit bicubic resize, bit for bit, compiled: `model.resize` for pixels in memory.

Both passes add up, in each of 16 lanes, four bytes times four weights: the same colour of four neighbours. Along the
rows four rows go together; what they give is kept in the order in which the second pass wants its four bytes. What is
computed is the window alone, and the rows between the two passes never leave the cache.

CPUs with AVX-512 VNNI multiply and add four bytes in one instruction, for weights of one byte: there each digit of the
weights (`model.resize_taps`) has a sum of its own. Whole numbers have the same sum in any order.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types

from model.jit import compiled, fields
from model.resize import PRECISION_BITS, UPRIGHT, Axis, Pixels, Turn
from model.resize_taps import DIGITS, GROUP, Lines, Taps, lines, taps
from model.vectors import call, emitted, has, register

LANES = 16
VNNI = has("avx512f", "avx512vnni")

_BYTES = ir.VectorType(ir.IntType(8), GROUP * LANES)
_INTS = ir.VectorType(ir.IntType(32), LANES)
_STATE = ir.LiteralStructType([_INTS] * DIGITS)
_pixels = register("pixels", _BYTES)
_sums = register("sums", _STATE)


def can(across: Axis, down: Axis) -> bool:
    """Whether these axes are for this module: others are too short for its vectors, or mostly thrown away."""
    return not any(axis.outgrown or axis.source < taps(axis, VNNI).per_pixel for axis in (across, down))


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
        wide, tall = taps(across, VNNI, by_x), lines(down, VNNI, by_y)
        missing = max(0, tall.stop - down.source)
        if missing:  # lines without a weight, but they are read
            pixels = np.pad(pixels, ((0, 0), (0, missing), (0, 0)) if turn.swaps else ((0, missing), (0, 0), (0, 0)))
        return self._run(self._swapped if turn.swaps else self._straight, np.ascontiguousarray(pixels), wide, tall)

    def _run(self, function: Any, pixels: Pixels, wide: Taps, tall: Lines) -> Pixels:
        wanted, height = len(wide.starts), len(tall.groups)
        columns = -(-wanted // GROUP) * GROUP
        groups = (tall.stop - tall.first) // GROUP
        between = np.empty((groups, columns, 4, GROUP), np.uint8)
        window = np.empty((height, columns, 3), np.uint8)
        arrays = pixels, wide.starts, wide.packed, tall.groups, tall.packed, between, window
        sizes = pixels.shape[1], wanted, wide.packed.shape[1], tall.packed.shape[1], tall.first, groups, columns, height
        table = (ctypes.c_int64 * (2 + len(arrays) + len(sizes)))(0, 0, *(a.ctypes.data for a in arrays), *sizes)
        function(ctypes.addressof(table))
        return window[:, :wanted] if columns != wanted else window


def _at(builder: Any, address: Any, kind: Any) -> Any:
    return builder.inttoptr(address, ir.PointerType(kind))


def _loaded(builder: Any, address: Any, kind: Any, align: int = 1) -> Any:
    return builder.load(_at(builder, address, kind), align=align, typ=kind)


def _picked(builder: Any, vector: Any, lanes: list[int], other: Any = None) -> Any:
    mask = ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes)
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined) if other is None else other, mask)


def _spread(builder: Any, number: Any) -> Any:
    first = builder.insert_element(ir.Constant(_INTS, ir.Undefined), number, ir.IntType(32)(0))
    return _picked(builder, first, [0] * LANES)


def _all(value: int) -> Any:
    return ir.Constant(_INTS, [value] * LANES)


@emitted
def _nothing(typing_context: Any) -> Any:
    """Sums of zero."""
    return _sums(), lambda context, builder, signature, args: ir.Constant(_STATE, [_all(0)] * DIGITS)


@emitted
def _read(typing_context: Any, place: Any) -> Any:
    """Four times four colours of four neighbours that lie together, at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _loaded(builder, args[0], _BYTES)

    return _pixels(types.int64), codegen


def _gathered(order: list[int]) -> Any:
    """Four pixels from each of four lines, `stride` bytes apart; in this order of their bytes."""

    @emitted
    def gather(typing_context: Any, place: Any, stride: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            quarter, stride = ir.VectorType(ir.IntType(8), LANES), args[1]
            places = [builder.add(args[0], builder.mul(stride, stride.type(i))) for i in range(GROUP)]
            a, b, c, d = (_loaded(builder, place, quarter) for place in places)
            halves = [_picked(builder, one, [*range(2 * LANES)], two) for one, two in ((a, b), (c, d))]
            return _picked(builder, _picked(builder, halves[0], [*range(4 * LANES)], halves[1]), order)

        return _pixels(types.int64, types.int64), codegen

    return gather


_BY_FOUR = range(GROUP)
# One lane's four bytes, lane by lane: of a row's four columns, or of four rows' one column.
_along_rows = _gathered([16 * row + 4 * k + c for row in _BY_FOUR for c in _BY_FOUR for k in _BY_FOUR])
_across_rows = _gathered([16 * k + 4 * row + c for row in _BY_FOUR for c in _BY_FOUR for k in _BY_FOUR])


@emitted
def _weigh(typing_context: Any, sums: Any, pixels: Any, weights: Any) -> Any:
    """Sums plus each lane's four bytes times the four weights at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        sums, pixels = args[0], builder.bitcast(args[1], _INTS)
        add = _with_digits if VNNI else _one_by_one
        return add(builder, sums, pixels, lambda i: _weight(builder, args[2], i))

    return _sums(_sums, _pixels, types.int64), codegen


def _weight(builder: Any, place: Any, i: int) -> Any:
    return _spread(builder, _loaded(builder, builder.add(place, place.type(4 * i)), ir.IntType(32), 4))


def _with_digits(builder: Any, sums: Any, pixels: Any, weight: Callable[[int], Any]) -> Any:
    for i in range(DIGITS):
        total = call(builder, "llvm.x86.avx512.vpdpbusd.512", _INTS, builder.extract_value(sums, i), pixels, weight(i))
        sums = builder.insert_value(sums, total, i)
    return sums


def _one_by_one(builder: Any, sums: Any, pixels: Any, weight: Callable[[int], Any]) -> Any:
    total = builder.extract_value(sums, 0)
    for i in range(GROUP):
        byte = builder.and_(builder.lshr(pixels, _all(8 * i)), _all(255))
        total = builder.add(total, builder.mul(byte, weight(i)))
    return builder.insert_value(sums, total, 0)


def _levels(builder: Any, sums: Any) -> Any:
    """Pillow's clip8: rounded, shifted down, then between 0 and 255, as bytes."""
    total = _all(1 << (PRECISION_BITS - 1))
    for i in range(DIGITS):
        total = builder.add(total, builder.shl(builder.extract_value(sums, i), _all(8 * i)))
    levels = builder.ashr(total, _all(PRECISION_BITS))
    levels = builder.select(builder.icmp_signed("<", levels, _all(0)), _all(0), levels)
    levels = builder.select(builder.icmp_signed(">", levels, _all(255)), _all(255), levels)
    return builder.trunc(levels, ir.VectorType(ir.IntType(8), LANES))


def _put(lanes: list[int]) -> Any:
    @emitted
    def put(typing_context: Any, place: Any, sums: Any) -> Any:
        """These bytes of the sums' levels, at an address."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            levels = _picked(builder, _levels(builder, args[1]), lanes)
            builder.store(levels, _at(builder, args[0], levels.type), align=1)
            return context.get_dummy_value()

        return types.none(types.int64, _sums), codegen

    return put


_put_column = _put([4 * row + c for c in _BY_FOUR for row in _BY_FOUR])  # four rows' bytes of a colour together
_put_pixels = _put([4 * pixel + c for pixel in _BY_FOUR for c in range(3)])


@emitted
def _int64(typing_context: Any, place: Any) -> Any:
    """The number at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _loaded(builder, args[0], ir.IntType(64), 8)

    return types.int64(types.int64), codegen


_fields: Any = fields(15)


@njit(inline="always")
def _down(between: Any, window: Any, starts: Any, weights: Any, taps: Any, columns: Any, height: Any) -> None:
    """The second pass: from groups of rows to rows."""
    for y in range(height):
        top = between + _int64(starts + 8 * y) * columns * 16
        for x in range(0, columns, 4):
            sums = _nothing()
            for k in range(taps):
                sums = _weigh(sums, _read(top + (k * columns + x) * 16), weights + (y * taps + k) * 16)
            _put_pixels(window + (y * columns + x) * 3, sums)


def _straight() -> Any:
    """First along the stored rows, four of them at once."""

    def resize(table: Any) -> None:
        (
            _, source, x_starts, x_weights, y_starts, y_weights, between, window,
            width, wanted, x_taps, y_taps, first, groups, columns, height,
        ) = _fields(table)  # fmt: skip
        stride = width * 4
        for r in range(groups):
            rows = source + (first + 4 * r) * stride
            for x in range(wanted):
                place, weights = rows + _int64(x_starts + 8 * x) * 4, x_weights + x * x_taps * 16
                sums = _nothing()
                for k in range(x_taps):
                    sums = _weigh(sums, _along_rows(place + 16 * k, stride), weights + 16 * k)
                _put_column(between + (r * columns + x) * 16, sums)
        _down(between, window, y_starts, y_weights, y_taps, columns, height)

    return resize


def _swapped() -> Any:
    """The same for an image whose rows are the stored columns: the first pass goes along those."""

    def resize_turned(table: Any) -> None:
        (
            _, source, x_starts, x_weights, y_starts, y_weights, between, window,
            width, wanted, x_taps, y_taps, first, groups, columns, height,
        ) = _fields(table)  # fmt: skip
        stride = width * 4
        for x in range(wanted):
            top, weights = source + _int64(x_starts + 8 * x) * stride + first * 4, x_weights + x * x_taps * 16
            for r in range(groups):
                sums = _nothing()
                for k in range(x_taps):
                    sums = _weigh(sums, _across_rows(top + 16 * r + 4 * k * stride, stride), weights + 16 * k)
                _put_column(between + (r * columns + x) * 16, sums)
        _down(between, window, y_starts, y_weights, y_taps, columns, height)

    return resize_turned
