"""Explicit float32 vectors inside numba kernels: `load(array, index)` gives LANES neighbours as one LLVM vector.

LLVM's own vectoriser cannot prove that a kernel's scratch arrays do not overlap and guards every short loop at run
time; spelled out like this the scan runs several times faster. Arrays are C-contiguous and indexed as if flat.
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


class _Vector(types.Type):
    def __init__(self) -> None:
        super().__init__(name=f"float32x{LANES}")


_vector = _Vector()


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, fe_type: Any) -> None:
        super().__init__(manager, fe_type, _FLOATS)  # type: ignore[no-untyped-call]


def _intrinsic(function: Callable[..., Any]) -> Any:
    """`intrinsic` without its stub, whose signature still has the typing context."""
    return intrinsic(function)


def _constant(kind: ir.VectorType, value: float) -> ir.Constant:
    return ir.Constant(kind, [value] * LANES)


def _call(builder: Any, name: str, result: Any, *args: Any) -> Any:
    kind = ir.FunctionType(result, [arg.type for arg in args])
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    return builder.call(function, args)


def _address(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), ir.PointerType(_FLOATS))


def _elementwise(build: Callable[..., Any], arity: int) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return build(builder, *args)

    if arity == 1:
        return _intrinsic(lambda typing_context, a: (_vector(_vector), codegen))
    if arity == 2:
        return _intrinsic(lambda typing_context, a, b: (_vector(_vector, _vector), codegen))
    return _intrinsic(lambda typing_context, a, b, c: (_vector(_vector, _vector, _vector), codegen))


_SUFFIX = f"v{LANES}f32"
add = _elementwise(lambda builder, a, b: builder.fadd(a, b), 2)
sub = _elementwise(lambda builder, a, b: builder.fsub(a, b), 2)
mul = _elementwise(lambda builder, a, b: builder.fmul(a, b), 2)
div = _elementwise(lambda builder, a, b: builder.fdiv(a, b), 2)
fma = _elementwise(lambda builder, a, b, c: _call(builder, f"llvm.fma.{_SUFFIX}", _FLOATS, a, b, c), 3)
floor = _elementwise(lambda builder, a: _call(builder, f"llvm.floor.{_SUFFIX}", _FLOATS, a), 1)
negate_abs = _elementwise(lambda builder, a: builder.fneg(_call(builder, f"llvm.fabs.{_SUFFIX}", _FLOATS, a)), 1)
maximum = _elementwise(lambda builder, a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b), 2)
minimum = _elementwise(lambda builder, a, b: builder.select(builder.fcmp_ordered("<", a, b), a, b), 2)
one_where_positive = _elementwise(
    lambda builder, a, b: builder.select(
        builder.fcmp_ordered(">=", a, _constant(_FLOATS, 0.0)), _constant(_FLOATS, 1.0), b
    ),
    2,
)


def _two_to_whole(builder: Any, whole: Any) -> Any:
    exponent = builder.add(builder.fptosi(whole, _INTS), _constant(_INTS, 127))
    return builder.bitcast(builder.shl(exponent, _constant(_INTS, 23)), _FLOATS)


two_to_whole = _elementwise(_two_to_whole, 1)


@_intrinsic
def load(typing_context: Any, array: Any, index: Any) -> Any:
    """LANES neighbours starting at this flat index."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(_address(context, builder, signature.args[0], *args), align=4, typ=_FLOATS)

    return _vector(array, index), codegen


@_intrinsic
def store(typing_context: Any, array: Any, index: Any, vector: Any) -> Any:
    """Write a vector to a flat index."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[2], _address(context, builder, signature.args[0], *args[:2]), align=4)
        return context.get_dummy_value()

    return types.none(array, index, vector), codegen


@_intrinsic
def prefetch(typing_context: Any, array: Any, index: Any) -> Any:
    """Ask for a flat index's cache line ahead of time; any index will do."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = builder.bitcast(_address(context, builder, signature.args[0], *args), ir.IntType(8).as_pointer())
        hints = [ir.IntType(32)(hint) for hint in (0, 3, 1)]  # read, keep, data
        _call(builder, "llvm.prefetch.p0", ir.VoidType(), address, *hints)
        return context.get_dummy_value()

    return types.none(array, index), codegen


@_intrinsic
def splat(typing_context: Any, value: Any) -> Any:
    """The same number in every lane."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        first = builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), args[0], ir.IntType(32)(0))
        return builder.shuffle_vector(first, ir.Constant(_FLOATS, ir.Undefined), _constant(_INTS, 0))

    return _vector(types.float32), codegen


@_intrinsic
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
def exp2(x: Any) -> Any:
    """2**x up to 126: the whole part into the exponent bits, a degree-5 polynomial for the rest."""
    x = maximum(x, splat(_F(-126.0)))
    whole = floor(x)
    f = sub(x, whole)
    p = fma(f, splat(_F(1.8775767e-3)), splat(_F(8.9893397e-3)))
    p = fma(p, f, splat(_F(5.5826318e-2)))
    p = fma(p, f, splat(_F(2.4015361e-1)))
    p = fma(p, f, splat(_F(6.9315308e-1)))
    p = fma(p, f, splat(_F(1.0)))
    return mul(p, two_to_whole(whole))


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
