"""Explicit float32 vectors inside numba kernels: `load(place, index)` gives LANES neighbours as one LLVM vector.

LLVM's own vectoriser cannot prove that a kernel's scratch arrays do not overlap and guards every short loop at run
time; spelled out like this the scan runs several times faster. A place is a C-contiguous array, indexed as if flat, or
the address of its first number. Nothing is checked here: whoever starts a kernel checks shapes.

The width is 512 bits everywhere: where registers are narrower LLVM takes two or four of them, which also hides latency.
NaN goes through every function; there is no fast-math.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, models, register_model

LANES = 16

_F = np.float32
_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_INTS = ir.VectorType(ir.IntType(32), LANES)
_LOG2E = _F(1.4426950408889634)


def register(name: str, kind: ir.VectorType) -> types.Type:
    """A type for numba whose values are LLVM vectors of this kind."""

    class Vector(types.Type):
        pass

    @register_model(Vector)
    class VectorModel(models.PrimitiveModel):
        def __init__(self, manager: Any, fe_type: Any) -> None:
            super().__init__(manager, fe_type, kind)  # type: ignore[no-untyped-call]

    return Vector(name=name)


_vector: Any = register(f"float32x{LANES}", _FLOATS)


def emitted(function: Callable[..., Any]) -> Any:
    """`intrinsic` without its stub, whose signature still has the typing context."""
    return intrinsic(function)


def _constant(kind: ir.VectorType, value: float) -> ir.Constant:
    return ir.Constant(kind, [value] * LANES)


def _call(builder: Any, name: str, result: Any, *args: Any) -> Any:
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
        return emitted(lambda typing_context, a: (_vector(_vector), codegen))
    if arity == 2:
        return emitted(lambda typing_context, a, b: (_vector(_vector, _vector), codegen))
    return emitted(lambda typing_context, a, b, c: (_vector(_vector, _vector, _vector), codegen))


_SUFFIX = f"v{LANES}f32"
add = _elementwise(lambda builder, a, b: builder.fadd(a, b), 2)
sub = _elementwise(lambda builder, a, b: builder.fsub(a, b), 2)
mul = _elementwise(lambda builder, a, b: builder.fmul(a, b), 2)
div = _elementwise(lambda builder, a, b: builder.fdiv(a, b), 2)
fma = _elementwise(lambda builder, a, b, c: _call(builder, f"llvm.fma.{_SUFFIX}", _FLOATS, a, b, c), 3)
negate_abs = _elementwise(lambda builder, a: builder.fneg(_call(builder, f"llvm.fabs.{_SUFFIX}", _FLOATS, a)), 1)
# NaN in the first argument is kept.
maximum = _elementwise(lambda builder, a, b: builder.select(builder.fcmp_ordered("<", a, b), b, a), 2)
minimum = _elementwise(lambda builder, a, b: builder.select(builder.fcmp_ordered(">", a, b), b, a), 2)

# Added to a number of less than 2**22 in size, it leaves the nearest whole number in the lowest bits.
_MAGIC = 1.5 * 2.0**23
_LEAST_EXPONENT = -126.0


def _scale(builder: Any, p: Any, magic_whole: Any) -> Any:
    """p * 2**whole, as an addition to the exponent's bits; 0 where that would be below the smallest normal number."""
    shifted = builder.shl(builder.bitcast(magic_whole, _INTS), _constant(_INTS, 23))
    scaled = builder.bitcast(builder.add(builder.bitcast(p, _INTS), shifted), _FLOATS)
    too_small = builder.fcmp_ordered("<", magic_whole, _constant(_FLOATS, _MAGIC + _LEAST_EXPONENT))
    return builder.select(too_small, _constant(_FLOATS, 0.0), scaled)


_scaled = _elementwise(_scale, 2)


@emitted
def load(typing_context: Any, place: Any, index: Any) -> Any:
    """LANES neighbours starting at this flat index."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(
            _address(context, builder, signature.args[0], args[0], args[1], _FLOATS), align=4, typ=_FLOATS
        )

    return _vector(place, index), codegen


@emitted
def store(typing_context: Any, place: Any, index: Any, vector: Any) -> Any:
    """Write a vector to a flat index."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[2], _address(context, builder, signature.args[0], args[0], args[1], _FLOATS), align=4)
        return context.get_dummy_value()

    return types.none(place, index, vector), codegen


@emitted
def prefetch(typing_context: Any, place: Any, index: Any) -> Any:
    """Ask for a flat index's cache line ahead of time; any index will do."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = _address(context, builder, signature.args[0], args[0], args[1], ir.IntType(8))
        hints = [ir.IntType(32)(hint) for hint in (0, 3, 1)]  # read, keep, data
        _call(builder, "llvm.prefetch.p0", ir.VoidType(), address, *hints)
        return context.get_dummy_value()

    return types.none(place, index), codegen


@emitted
def splat(typing_context: Any, value: Any) -> Any:
    """The same number in every lane."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        first = builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), args[0], ir.IntType(32)(0))
        return builder.shuffle_vector(first, ir.Constant(_FLOATS, ir.Undefined), _constant(_INTS, 0))

    return _vector(types.float32), codegen


@emitted
def scalar(typing_context: Any, place: Any, index: Any) -> Any:
    """One number at a flat index."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(_address(context, builder, signature.args[0], args[0], args[1], ir.FloatType()))

    return types.float32(place, index), codegen


@emitted
def total(typing_context: Any, vector: Any) -> Any:
    """The sum of the lanes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        zero = ir.FloatType()(0.0)
        name = f"llvm.vector.reduce.fadd.{_SUFFIX}"
        kind = ir.FunctionType(ir.FloatType(), [zero.type, _FLOATS])
        function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        return builder.call(function, [zero, args[0]], fastmath=("reassoc",))

    return types.float32(vector), codegen


@njit(inline="always")
def spread(place: Any, index: Any) -> Any:
    """The number at a flat index, in every lane."""
    return splat(scalar(place, index))


@njit(inline="always")
def exp2_of_product(a: Any, b: Any) -> Any:
    """2**(a b) for a b of at most 127; relative error 2e-7, and 0 below 2**-126.

    The nearest whole number goes into the exponent's bits, a degree-5 polynomial gives the rest.
    """
    magic_whole = fma(a, b, splat(_F(_MAGIC)))
    f = fma(a, b, sub(splat(_F(_MAGIC)), magic_whole))
    p = fma(f, splat(_F(1.326472731307149e-3)), splat(_F(9.671512991189957e-3)))
    p = fma(p, f, splat(_F(5.550733581185341e-2)))
    p = fma(p, f, splat(_F(2.4022242426872253e-1)))
    p = fma(p, f, splat(_F(6.931470036506653e-1)))
    p = fma(p, f, splat(_F(1.0)))
    return _scaled(p, magic_whole)


@njit(inline="always")
def exp2(x: Any) -> Any:
    """2**x, as above."""
    return exp2_of_product(x, splat(_F(1.0)))


@njit(inline="always")
def log1p(x: Any) -> Any:
    """log(1 + x) for x in 0..1, relative error 2e-7."""
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
    return div(splat(_F(1.0)), add(splat(_F(1.0)), e))


@njit(inline="always")
def softplus(x: Any) -> Any:
    """log(1 + exp(x)), without overflow."""
    e = exp2(mul(negate_abs(x), splat(_LOG2E)))
    return add(maximum(x, splat(_F(0.0))), log1p(e))
