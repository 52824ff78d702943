"""Explicit float32 vectors inside numba kernels: `load(place, index)` loads LANES neighbours as one LLVM vector.

LLVM's own vectoriser cannot prove that a kernel's scratch arrays do not overlap, and guards every short loop at run
time; with explicit vectors the scan runs several times faster. A place is a C-contiguous array, indexed as if flat, or
the address of its first number. Nothing is checked here: the caller of a kernel checks shapes.

Vectors have 512 bits on every CPU: where registers are narrower LLVM uses two or four of them, which also hides
latency. Every function propagates NaN; fast-math is not used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, models, register_model

from model.jit import levels

LANES = 16

_F = np.float32
_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_INTS = ir.VectorType(ir.IntType(32), LANES)
_SHORTS = ir.VectorType(ir.IntType(16), LANES)
_LOG2E = _F(1.4426950408889634)


def register_vector(name: str, kind: ir.VectorType) -> types.Type:
    """Return a numba type whose values are LLVM vectors of the type `kind`."""

    class Vector(types.Type):
        pass

    @register_model(Vector)
    class VectorModel(models.PrimitiveModel):
        def __init__(self, manager: Any, fe_type: Any) -> None:
            super().__init__(manager, fe_type, kind)  # type: ignore[no-untyped-call]

    return Vector(name=name)


_vector: Any = register_vector(f"float32x{LANES}", _FLOATS)


def llvm_intrinsic(function: Callable[..., Any]) -> Any:
    """`numba.extending.intrinsic`, without its type stub: there the signature still has the typing context."""
    return intrinsic(function)


def _constant(kind: ir.VectorType, value: float) -> ir.Constant:
    return ir.Constant(kind, [value] * LANES)


def call_llvm(builder: Any, name: str, result: Any, *args: Any) -> Any:
    """Call the LLVM function `name` and return its result."""
    kind = ir.FunctionType(result, [arg.type for arg in args])
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    return builder.call(function, args)


def _address(context: Any, builder: Any, place_type: Any, place: Any, index: Any, kind: Any) -> Any:
    if isinstance(place_type, types.Integer):
        data = builder.inttoptr(place, ir.PointerType(ir.FloatType()))
    else:
        data = context.make_array(place_type)(context, builder, place).data
    return builder.bitcast(builder.gep(data, [index]), ir.PointerType(kind))


def _elementwise(build: Callable[..., Any], arity: int) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return build(builder, *args)

    if arity == 1:
        return llvm_intrinsic(lambda typing_context, a: (_vector(_vector), codegen))
    if arity == 2:
        return llvm_intrinsic(lambda typing_context, a, b: (_vector(_vector, _vector), codegen))
    return llvm_intrinsic(lambda typing_context, a, b, c: (_vector(_vector, _vector, _vector), codegen))


_SUFFIX = f"v{LANES}f32"
add = _elementwise(lambda builder, a, b: builder.fadd(a, b), 2)
sub = _elementwise(lambda builder, a, b: builder.fsub(a, b), 2)
mul = _elementwise(lambda builder, a, b: builder.fmul(a, b), 2)
div = _elementwise(lambda builder, a, b: builder.fdiv(a, b), 2)
fma = _elementwise(lambda builder, a, b, c: call_llvm(builder, f"llvm.fma.{_SUFFIX}", _FLOATS, a, b, c), 3)
negate = _elementwise(lambda builder, a: builder.fneg(a), 1)
negate_abs = _elementwise(lambda builder, a: builder.fneg(call_llvm(builder, f"llvm.fabs.{_SUFFIX}", _FLOATS, a)), 1)
# Both return NaN if the first argument is NaN.
maximum = _elementwise(lambda builder, a, b: builder.select(builder.fcmp_ordered("<", a, b), b, a), 2)
minimum = _elementwise(lambda builder, a, b: builder.select(builder.fcmp_ordered(">", a, b), b, a), 2)

# Adding it to a number below 2**22 in magnitude leaves the nearest whole number in the lowest bits.
_MAGIC = 1.5 * 2.0**23
_LEAST_EXPONENT = -126.0


def _scale(builder: Any, p: Any, magic_whole: Any) -> Any:
    """p * 2**whole, by adding to the exponent's bits; 0 where the result is below the smallest normal number."""
    shifted = builder.shl(builder.bitcast(magic_whole, _INTS), _constant(_INTS, 23))
    scaled = builder.bitcast(builder.add(builder.bitcast(p, _INTS), shifted), _FLOATS)
    too_small = builder.fcmp_ordered("<", magic_whole, _constant(_FLOATS, _MAGIC + _LEAST_EXPONENT))
    return builder.select(too_small, _constant(_FLOATS, 0.0), scaled)


_scaled = _elementwise(_scale, 2)


def has_features(*names: str) -> bool:
    """Return whether the CPU that is compiled for has all these features, by LLVM's names."""
    features = numba.config.CPU_FEATURES  # type: ignore[attr-defined]
    if features is None:
        named = numba.config.CPU_NAME is not None  # type: ignore[attr-defined]
        return not named and levels.host_features().issuperset(names)
    return {f"+{name}" for name in names} <= set(features.split(","))


def has_avx512() -> bool:
    """Return whether the AVX-512 instructions used below are available."""
    return has_features("avx512f", "avx512dq")


_EVERY_LANE, _AS_SET = ir.IntType(16)(0xFFFF), ir.IntType(32)(4)
_DOWN = ir.IntType(32)(0b1001)  # round down, without a floating-point exception


def _fraction(builder: Any, x: Any) -> Any:
    name = "llvm.x86.avx512.mask.reduce.ps.512"
    return call_llvm(builder, name, _FLOATS, x, _DOWN, _constant(_FLOATS, 0.0), _EVERY_LANE, _AS_SET)


def _scale_by_floor(builder: Any, p: Any, x: Any) -> Any:
    name = "llvm.x86.avx512.mask.scalef.ps.512"
    return call_llvm(builder, name, _FLOATS, p, x, _constant(_FLOATS, 0.0), _EVERY_LANE, _AS_SET)


def _reciprocal_guess(builder: Any, x: Any) -> Any:
    return call_llvm(builder, "llvm.x86.avx512.rcp14.ps.512", _FLOATS, x, _constant(_FLOATS, 0.0), _EVERY_LANE)


_fraction_avx512 = _elementwise(_fraction, 1)  # x - floor(x)
_scaled_avx512 = _elementwise(_scale_by_floor, 2)  # p * 2**floor(x) for any x
_guess_avx512 = _elementwise(_reciprocal_guess, 1)  # 1 / x to 14 bits


@llvm_intrinsic
def load(typing_context: Any, place: Any, index: Any) -> Any:
    """Load LANES neighbours, starting at this flat index."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(
            _address(context, builder, signature.args[0], args[0], args[1], _FLOATS), align=4, typ=_FLOATS
        )

    return _vector(place, index), codegen


@llvm_intrinsic
def store(typing_context: Any, place: Any, index: Any, vector: Any) -> Any:
    """Store a vector at a flat index."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[2], _address(context, builder, signature.args[0], args[0], args[1], _FLOATS), align=4)
        return context.get_dummy_value()

    return types.none(place, index, vector), codegen


def _rounded(builder: Any, x: Any) -> Any:
    """Round to the nearest bfloat16, ties to even, as 16 bits; NaN stays NaN."""
    bits = builder.bitcast(x, _INTS)
    last = builder.and_(builder.lshr(bits, _constant(_INTS, 16)), _constant(_INTS, 1))
    nearest = builder.add(bits, builder.add(last, _constant(_INTS, 0x7FFF)))
    nan = builder.or_(bits, _constant(_INTS, 0x400000))  # stays NaN when the payload is cut off
    upper = builder.lshr(builder.select(builder.fcmp_unordered("uno", x, x), nan, nearest), _constant(_INTS, 16))
    return builder.trunc(upper, _SHORTS)


@llvm_intrinsic
def store_bfloat16(typing_context: Any, address: Any, index: Any, vector: Any) -> Any:
    """Round a vector to bfloat16 and store it at a flat index of a bfloat16 array."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        start = builder.inttoptr(args[0], ir.PointerType(ir.IntType(16)))
        place = builder.bitcast(builder.gep(start, [args[1]]), ir.PointerType(_SHORTS))
        builder.store(_rounded(builder, args[2]), place, align=2)
        return context.get_dummy_value()

    return types.none(address, index, vector), codegen


@llvm_intrinsic
def prefetch(typing_context: Any, place: Any, index: Any) -> Any:
    """Prefetch the cache line of a flat index; an index outside the array is allowed."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = _address(context, builder, signature.args[0], args[0], args[1], ir.IntType(8))
        hints = [ir.IntType(32)(hint) for hint in (0, 3, 1)]  # read, keep, data
        call_llvm(builder, "llvm.prefetch.p0", ir.VoidType(), address, *hints)
        return context.get_dummy_value()

    return types.none(place, index), codegen


@llvm_intrinsic
def splat(typing_context: Any, value: Any) -> Any:
    """Return a vector with the same number in every lane."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        first = builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), args[0], ir.IntType(32)(0))
        return builder.shuffle_vector(first, ir.Constant(_FLOATS, ir.Undefined), _constant(_INTS, 0))

    return _vector(types.float32), codegen


@llvm_intrinsic
def load_scalar(typing_context: Any, place: Any, index: Any) -> Any:
    """Load one number at a flat index."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(_address(context, builder, signature.args[0], args[0], args[1], ir.FloatType()))

    return types.float32(place, index), codegen


@llvm_intrinsic
def reduce_add(typing_context: Any, vector: Any) -> Any:
    """Return the sum of the lanes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        zero = ir.FloatType()(0.0)
        name = f"llvm.vector.reduce.fadd.{_SUFFIX}"
        kind = ir.FunctionType(ir.FloatType(), [zero.type, _FLOATS])
        function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        return builder.call(function, [zero, args[0]], fastmath=("reassoc",))

    return types.float32(vector), codegen


@njit(inline="always")
def load_splat(place: Any, index: Any) -> Any:
    """Load the number at a flat index into every lane."""
    return splat(load_scalar(place, index))


def exp2_of_product_generic(a: Any, b: Any) -> Any:
    """2**(a b) for a b of at most 127, with a relative error of 2e-7; 0 below 2**-126.

    The nearest whole number is added to the exponent's bits; a degree-5 polynomial gives the fraction's power.
    """
    magic_whole = fma(a, b, splat(_F(_MAGIC)))
    f = fma(a, b, sub(splat(_F(_MAGIC)), magic_whole))
    p = fma(f, splat(_F(1.326472731307149e-3)), splat(_F(9.671512991189957e-3)))
    p = fma(p, f, splat(_F(5.550733581185341e-2)))
    p = fma(p, f, splat(_F(2.4022242426872253e-1)))
    p = fma(p, f, splat(_F(6.931470036506653e-1)))
    p = fma(p, f, splat(_F(1.0)))
    return _scaled(p, magic_whole)


def exp2_of_product_avx512(a: Any, b: Any) -> Any:
    """The same in 8 instructions instead of 12, down to the smallest denormal number.

    The polynomial is exactly 1 at 0 and 2 at 1, so slow decays are equally exact on both sides of a whole number.
    """
    x = mul(a, b)
    f = _fraction_avx512(x)
    p = fma(f, splat(_F(1.8793186481988141e-3)), splat(_F(8.990995096217383e-3)))
    p = fma(p, f, splat(_F(5.5818675961269985e-2)))
    p = fma(p, f, splat(_F(2.401592714644181e-1)))
    p = fma(p, f, splat(_F(6.931517388298958e-1)))
    p = fma(p, f, splat(_F(1.0)))
    return _scaled_avx512(p, x)


exp2_of_product = njit(inline="always")(exp2_of_product_avx512 if has_avx512() else exp2_of_product_generic)


def reciprocal_generic(x: Any) -> Any:
    """1 / x."""
    return div(splat(_F(1.0)), x)


def reciprocal_avx512(x: Any) -> Any:
    """1 / x for x of 1 to 2**126, to the last bit but one: an estimate and a Newton step, faster than a division."""
    guess = _guess_avx512(x)
    return fma(guess, fma(x, negate(guess), splat(_F(1.0))), guess)


reciprocal = njit(inline="always")(reciprocal_avx512 if has_avx512() else reciprocal_generic)


@njit(inline="always")
def exp2(x: Any) -> Any:
    """2**x; see `exp2_of_product`."""
    return exp2_of_product(x, splat(_F(1.0)))


@njit(inline="always")
def log1p(x: Any) -> Any:
    """log(1 + x) for x in 0..1, with a relative error of 2e-7."""
    p = fma(x, splat(_F(5.25345780e-3)), splat(_F(-2.95885074e-2)))
    p = fma(p, x, splat(_F(7.83616680e-2)))
    p = fma(p, x, splat(_F(-1.36747697e-1)))
    p = fma(p, x, splat(_F(1.91114311e-1)))
    p = fma(p, x, splat(_F(-2.48443699e-1)))
    p = fma(p, x, splat(_F(3.33192713e-1)))
    p = fma(p, x, splat(_F(-4.99995015e-1)))
    p = fma(p, x, splat(_F(9.99999971e-1)))
    return mul(p, x)


@njit(inline="always")
def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x))."""
    e = exp2(minimum(mul(x, splat(-_LOG2E)), splat(_F(126.0))))
    return reciprocal(add(splat(_F(1.0)), e))


@njit(inline="always")
def softplus(x: Any) -> Any:
    """log(1 + exp(x)), without overflow."""
    e = exp2(mul(negate_abs(x), splat(_LOG2E)))
    return add(maximum(x, splat(_F(0.0))), log1p(e))
