"""A wanted window of Pillow's 8-bit bicubic resize, bit for bit, compiled: `model.resize` for pixels in memory.

Both passes add up, in each of 16 lanes, four bytes times four weights: the same colour of four neighbours. Along the
rows four rows go together: their pixels are brought into that order once, into a line that stays in the cache, and so
is what the first pass gives for the second. What is computed is the window alone.

CPUs with AVX-512 VNNI multiply and add four bytes in one instruction, for weights of one byte: there each digit of the
weights (`model.resize_taps`) has a sum of its own. Whole numbers have the same sum in any order.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types

from model.jit import compiled, fields
from model.resize import PRECISION_BITS, UPRIGHT, Axis, Pixels, Turn
from model.resize_taps import DIGITS, GROUP, Lines, lines, taps
from model.vectors import call, emitted, has, register

LANES = 16
BLOCK = GROUP * LANES  # bytes: four pixels of four lines, three colours and a place left free
VNNI = has("avx512f", "avx512bw", "avx512vnni")

_BYTES = ir.VectorType(ir.IntType(8), BLOCK)
_INTS = ir.VectorType(ir.IntType(32), LANES)
_STATE = ir.LiteralStructType([_INTS] * DIGITS)
_SPREAD = ir.LiteralStructType([_INTS] * GROUP)
_pixels = register("pixels", _BYTES)
_sums = register("sums", _STATE)
_weights = register("weights", _SPREAD)
_levels = register("levels", _INTS)


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
        wide, tall = lines(across, VNNI, by_x), lines(down, VNNI, by_y)
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


def _at(builder: Any, address: Any, kind: Any) -> Any:
    return builder.inttoptr(address, ir.PointerType(kind))


def _loaded(builder: Any, address: Any, kind: Any, align: int = 1) -> Any:
    return builder.load(_at(builder, address, kind), align=align, typ=kind)


def _picked(builder: Any, vector: Any, lanes: list[int], other: Any = None) -> Any:
    mask = ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes)
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined) if other is None else other, mask)


def _all(value: int) -> Any:
    return ir.Constant(_INTS, [value] * LANES)


@emitted
def _half(typing_context: Any) -> Any:
    """Sums of one half, in Pillow's fixed point, so that they are rounded when they are cut."""
    first = _all(1 << (PRECISION_BITS - 1))
    state = ir.Constant(_STATE, [first, *[_all(0)] * (DIGITS - 1)])
    return _sums(), lambda context, builder, signature, args: state


@emitted
def _read(typing_context: Any, place: Any) -> Any:
    """Each lane's four bytes, at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _loaded(builder, args[0], _BYTES)

    return _pixels(types.int64), codegen


def _arranged(order: list[int]) -> Any:
    """Four pixels from each of four lines, `stride` bytes apart, to an address; in this order of their bytes."""

    @emitted
    def arrange(typing_context: Any, to: Any, place: Any, stride: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            quarter, stride = ir.VectorType(ir.IntType(8), LANES), args[2]
            places = [builder.add(args[1], builder.mul(stride, stride.type(i))) for i in range(GROUP)]
            joined = _joined(builder, [_loaded(builder, place, quarter) for place in places])
            builder.store(_picked(builder, joined, order), _at(builder, args[0], _BYTES), align=1)
            return context.get_dummy_value()

        return types.none(types.int64, types.int64, types.int64), codegen

    return arrange


def _joined(builder: Any, quarters: list[Any]) -> Any:
    halves = [_picked(builder, quarters[i], [*range(2 * LANES)], quarters[i + 1]) for i in (0, 2)]
    return _picked(builder, halves[0], [*range(BLOCK)], halves[1])


_BY_FOUR = range(GROUP)
# One lane's four bytes, lane by lane: of a row's four columns, or of four rows' one column. The fourth colour is any.
_along_rows = _arranged([LANES * row + 3 * k + c % 3 for row in _BY_FOUR for c in _BY_FOUR for k in _BY_FOUR])
_across_rows = _arranged([LANES * k + 3 * row + c % 3 for row in _BY_FOUR for c in _BY_FOUR for k in _BY_FOUR])


@emitted
def _weigh(typing_context: Any, sums: Any, pixels: Any, weights: Any) -> Any:
    """Sums plus each lane's four bytes times four weights."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        sums, pixels = args[0], builder.bitcast(args[1], _INTS)
        weights = [builder.extract_value(args[2], i) for i in range(DIGITS if VNNI else GROUP)]
        return (_with_digits if VNNI else _one_by_one)(builder, sums, pixels, weights)

    return _sums(_sums, _pixels, _weights), codegen


@emitted
def _spread(typing_context: Any, place: Any) -> Any:
    """The weights at an address, each in all lanes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        spread = ir.Constant(_SPREAD, ir.Undefined)
        for i in range(DIGITS if VNNI else GROUP):
            number = _loaded(builder, builder.add(args[0], args[0].type(4 * i)), ir.IntType(32), 4)
            first = builder.insert_element(ir.Constant(_INTS, ir.Undefined), number, ir.IntType(32)(0))
            spread = builder.insert_value(spread, _picked(builder, first, [0] * LANES), i)
        return spread

    return _weights(types.int64), codegen


def _with_digits(builder: Any, sums: Any, pixels: Any, weights: list[Any]) -> Any:
    for i, weight in enumerate(weights):
        total = call(builder, "llvm.x86.avx512.vpdpbusd.512", _INTS, builder.extract_value(sums, i), pixels, weight)
        sums = builder.insert_value(sums, total, i)
    return sums


def _one_by_one(builder: Any, sums: Any, pixels: Any, weights: list[Any]) -> Any:
    total = builder.extract_value(sums, 0)
    for i, weight in enumerate(weights):
        byte = builder.and_(builder.lshr(pixels, _all(8 * i)), _all(255))
        total = builder.add(total, builder.mul(byte, weight))
    return builder.insert_value(sums, total, 0)


@emitted
def _cut(typing_context: Any, sums: Any) -> Any:
    """Levels of colour: the sums shifted down."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        total = builder.extract_value(args[0], 0)
        if VNNI:
            middle, high = builder.extract_value(args[0], 1), builder.extract_value(args[0], 2)
            total = builder.add(total, builder.shl(builder.add(middle, builder.shl(high, _all(8))), _all(8)))
        return builder.ashr(total, _all(PRECISION_BITS))

    return _levels(_sums), codegen


def _clipped(builder: Any, levels: list[Any]) -> Any:
    """Four times 16 levels, put between 0 and 255, as bytes in the order that `_byte` tells."""
    if VNNI:  # these two clip
        words = ir.VectorType(ir.IntType(16), 2 * LANES)
        low, high = (call(builder, "llvm.x86.avx512.packssdw.512", words, *levels[i : i + 2]) for i in (0, 2))
        return call(builder, "llvm.x86.avx512.packuswb.512", _BYTES, low, high)
    quarters = []
    for some in levels:
        some = builder.select(builder.icmp_signed("<", some, _all(0)), _all(0), some)
        some = builder.select(builder.icmp_signed(">", some, _all(255)), _all(255), some)
        quarters.append(builder.trunc(some, ir.VectorType(ir.IntType(8), LANES)))
    return _joined(builder, quarters)


def _byte(which: int, lane: int) -> int:
    """Where a lane of one of the four is after `_clipped`."""
    return LANES * (lane // GROUP) + GROUP * which + lane % GROUP if VNNI else LANES * which + lane


def _put(places: list[tuple[int, int]]) -> Any:
    @emitted
    def put(typing_context: Any, place: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
        """Four times 16 levels at an address: for each byte which of the four, and its lane."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            chosen = _picked(builder, _clipped(builder, args[1:]), [_byte(*place) for place in places])
            builder.store(chosen, _at(builder, args[0], _BYTES), align=1)
            return context.get_dummy_value()

        return types.none(types.int64, _levels, _levels, _levels, _levels), codegen

    return put


# Of four columns: four rows' bytes of a colour together, and 16 bytes that the next ones overwrite.
_put_columns = _put([(x, 4 * row + c) for x in _BY_FOUR for c in range(3) for row in _BY_FOUR] + [(0, 0)] * LANES)
_put_lanes = _put([(x, lane) for x in _BY_FOUR for lane in range(LANES)])


@emitted
def _int64(typing_context: Any, place: Any) -> Any:
    """The number at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _loaded(builder, args[0], ir.IntType(64), 8)

    return types.int64(types.int64), codegen


_fields: Any = fields(21)


@njit(inline="always")
def _across(line: Any, step: Any, group: Any, weights: Any, taps: Any) -> Any:
    """One column of two groups of rows."""
    place = line + _int64(group) * step
    a, b = _half(), _half()
    for k in range(taps):
        spread = _spread(weights + 16 * k)
        a = _weigh(a, _read(place + k * step), spread)
        b = _weigh(b, _read(place + k * step + BLOCK), spread)
    return _cut(a), _cut(b)


@njit(inline="always")
def _four_across(line: Any, step: Any, groups: Any, weights: Any, taps: Any, put: Any, next_row: Any) -> Any:
    a, e = _across(line, step, groups, weights, taps)
    b, f = _across(line, step, groups + 8, weights + taps * 16, taps)
    c, g = _across(line, step, groups + 16, weights + taps * 32, taps)
    d, h = _across(line, step, groups + 24, weights + taps * 48, taps)
    _put_columns(put, a, b, c, d)
    _put_columns(put + next_row, e, f, g, h)


@njit(inline="always")
def _down(place: Any, row: Any, weights: Any, taps: Any, put: Any) -> Any:
    """64 bytes of one row."""
    a, b, c, d = _half(), _half(), _half(), _half()
    for k in range(taps):
        spread, at = _spread(weights + 16 * k), place + k * row
        a = _weigh(a, _read(at), spread)
        b = _weigh(b, _read(at + BLOCK), spread)
        c = _weigh(c, _read(at + 2 * BLOCK), spread)
        d = _weigh(d, _read(at + 3 * BLOCK), spread)
    _put_lanes(put, _cut(a), _cut(b), _cut(c), _cut(d))


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
                        _across_rows(lines + b * step + r * BLOCK, place, stride)
                    else:
                        _along_rows(lines + b * step + r * BLOCK, place, stride)
            for x in range(0, columns, 4):
                at, weights = x_groups + 8 * x, x_weights + x * x_taps * 16
                for r in range(0, count, 2):
                    put = between + (first + r) * row + 12 * x
                    _four_across(lines + r * BLOCK, step, at, weights, x_taps, put, row)
        for y in range(height):
            top, weights = between + _int64(y_groups + 8 * y) * row, y_weights + y * y_taps * 16
            for x in range(0, width, BLOCK):
                _down(top + 4 * x, row, weights, y_taps, window + y * width + x)

    return resize
