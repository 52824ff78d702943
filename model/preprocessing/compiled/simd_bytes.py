"""Blocks of 64 bytes inside numba kernels: 16 lanes of four neighbouring bytes, multiplied by weights and summed.

CPUs with AVX-512 VNNI multiply and add four bytes in one instruction, with weights of one byte: there each digit of the
weights (`model.preprocessing.compiled.filter_weights`) has its own sum. Integer sums are the same in any order. This
module never imports torch.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from model.jit.simd import call_llvm, has_features, llvm_intrinsic, register_vector
from model.preprocessing.compiled.filter_weights import DIGITS, GROUP
from model.preprocessing.resize import PRECISION_BITS

LANES = 16
BLOCK = GROUP * LANES
VNNI = has_features("avx512f", "avx512bw", "avx512vnni")

_BYTES = ir.VectorType(ir.IntType(8), BLOCK)
_INTS = ir.VectorType(ir.IntType(32), LANES)
_STATE = ir.LiteralStructType([_INTS] * DIGITS)
_SPREAD = ir.LiteralStructType([_INTS] * GROUP)
_pixels = register_vector("pixels", _BYTES)
_sums = register_vector("sums", _STATE)
_weights = register_vector("weights", _SPREAD)
_levels = register_vector("levels", _INTS)


def pointer(builder: Any, address: Any, kind: Any) -> Any:
    """Return a pointer to a value of this type at an address."""
    return builder.inttoptr(address, ir.PointerType(kind))


def load_vector(builder: Any, address: Any, kind: Any, align: int = 1) -> Any:
    """Load a value of this type from an address."""
    return builder.load(pointer(builder, address, kind), align=align, typ=kind)


def shuffle(builder: Any, vector: Any, lanes: list[int], other: Any = None) -> Any:
    """Return some lanes of a vector, or of two concatenated vectors."""
    mask = ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes)
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined) if other is None else other, mask)


def _splat(value: int) -> Any:
    return ir.Constant(_INTS, [value] * LANES)


@llvm_intrinsic
def rounding_sums(typing_context: Any) -> Any:
    """Return sums that start at one half in Pillow's fixed point, so that shifting them right rounds them."""
    first = _splat(1 << (PRECISION_BITS - 1))
    state = ir.Constant(_STATE, [first, *[_splat(0)] * (DIGITS - 1)])
    return _sums(), lambda context, builder, signature, args: state


@llvm_intrinsic
def load_pixels(typing_context: Any, place: Any) -> Any:
    """Load each lane's four bytes from an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return load_vector(builder, args[0], _BYTES)

    return _pixels(types.int64), codegen


def _transposed(order: list[int]) -> Any:
    """Return a function that stores four pixels of each of four lines, `stride` bytes apart, in this order of bytes."""

    @llvm_intrinsic
    def arrange(typing_context: Any, to: Any, place: Any, stride: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            quarter, stride = ir.VectorType(ir.IntType(8), LANES), args[2]
            places = [builder.add(args[1], builder.mul(stride, stride.type(i))) for i in range(GROUP)]
            joined = _joined(builder, [load_vector(builder, place, quarter) for place in places])
            builder.store(shuffle(builder, joined, order), pointer(builder, args[0], _BYTES), align=1)
            return context.get_dummy_value()

        return types.none(types.int64, types.int64, types.int64), codegen

    return arrange


def _joined(builder: Any, quarters: list[Any]) -> Any:
    halves = [shuffle(builder, quarters[i], [*range(2 * LANES)], quarters[i + 1]) for i in (0, 2)]
    return shuffle(builder, halves[0], [*range(BLOCK)], halves[1])


_BY_FOUR = range(GROUP)
# The four bytes of each lane: four columns of a row, or four rows of a column. The fourth colour is undefined.
along_rows = _transposed([LANES * row + 3 * k + c % 3 for row in _BY_FOUR for c in _BY_FOUR for k in _BY_FOUR])
across_rows = _transposed([LANES * k + 3 * row + c % 3 for row in _BY_FOUR for c in _BY_FOUR for k in _BY_FOUR])


@llvm_intrinsic
def multiply_add(typing_context: Any, sums: Any, pixels: Any, weights: Any) -> Any:
    """Add to the sums each lane's four bytes times four weights."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        sums, pixels = args[0], builder.bitcast(args[1], _INTS)
        weights = [builder.extract_value(args[2], i) for i in range(DIGITS if VNNI else GROUP)]
        return (_with_digits if VNNI else _one_by_one)(builder, sums, pixels, weights)

    return _sums(_sums, _pixels, _weights), codegen


@llvm_intrinsic
def load_weights(typing_context: Any, place: Any) -> Any:
    """Load the weights at an address, each into all lanes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        spread = ir.Constant(_SPREAD, ir.Undefined)
        for i in range(DIGITS if VNNI else GROUP):
            number = load_vector(builder, builder.add(args[0], args[0].type(4 * i)), ir.IntType(32), 4)
            first = builder.insert_element(ir.Constant(_INTS, ir.Undefined), number, ir.IntType(32)(0))
            spread = builder.insert_value(spread, shuffle(builder, first, [0] * LANES), i)
        return spread

    return _weights(types.int64), codegen


def _with_digits(builder: Any, sums: Any, pixels: Any, weights: list[Any]) -> Any:
    for i, weight in enumerate(weights):
        total = call_llvm(
            builder, "llvm.x86.avx512.vpdpbusd.512", _INTS, builder.extract_value(sums, i), pixels, weight
        )
        sums = builder.insert_value(sums, total, i)
    return sums


def _one_by_one(builder: Any, sums: Any, pixels: Any, weights: list[Any]) -> Any:
    total = builder.extract_value(sums, 0)
    for i, weight in enumerate(weights):
        byte = builder.and_(builder.lshr(pixels, _splat(8 * i)), _splat(255))
        total = builder.add(total, builder.mul(byte, weight))
    return builder.insert_value(sums, total, 0)


@llvm_intrinsic
def shift_down(typing_context: Any, sums: Any) -> Any:
    """Shift the sums right: from fixed point to colour levels."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        total = builder.extract_value(args[0], 0)
        if VNNI:
            middle, high = builder.extract_value(args[0], 1), builder.extract_value(args[0], 2)
            total = builder.add(total, builder.shl(builder.add(middle, builder.shl(high, _splat(8))), _splat(8)))
        return builder.ashr(total, _splat(PRECISION_BITS))

    return _levels(_sums), codegen


def _clipped(builder: Any, levels: list[Any]) -> Any:
    """Clip four times 16 levels to 0..255, as bytes in the order of `_byte`."""
    if VNNI:  # both instructions clip
        words = ir.VectorType(ir.IntType(16), 2 * LANES)
        low, high = (call_llvm(builder, "llvm.x86.avx512.packssdw.512", words, *levels[i : i + 2]) for i in (0, 2))
        return call_llvm(builder, "llvm.x86.avx512.packuswb.512", _BYTES, low, high)
    quarters = []
    for some in levels:
        some = builder.select(builder.icmp_signed("<", some, _splat(0)), _splat(0), some)
        some = builder.select(builder.icmp_signed(">", some, _splat(255)), _splat(255), some)
        quarters.append(builder.trunc(some, ir.VectorType(ir.IntType(8), LANES)))
    return _joined(builder, quarters)


def _byte(which: int, lane: int) -> int:
    """Return the position, after `_clipped`, of a lane of one of the four vectors."""
    return LANES * (lane // GROUP) + GROUP * which + lane % GROUP if VNNI else LANES * which + lane


def _store(places: list[tuple[int, int]]) -> Any:
    @llvm_intrinsic
    def put(typing_context: Any, place: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
        """Store four times 16 levels; `places` has, for each byte, one of the four vectors and its lane."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            chosen = shuffle(builder, _clipped(builder, args[1:]), [_byte(*place) for place in places])
            builder.store(chosen, pointer(builder, args[0], _BYTES), align=1)
            return context.get_dummy_value()

        return types.none(types.int64, _levels, _levels, _levels, _levels), codegen

    return put


# Four columns: the bytes of four rows of a colour are neighbours; the next store overwrites the last 16 bytes.
store_columns = _store([(x, 4 * row + c) for x in _BY_FOUR for c in range(3) for row in _BY_FOUR] + [(0, 0)] * LANES)
store_lanes = _store([(x, lane) for x in _BY_FOUR for lane in range(LANES)])
