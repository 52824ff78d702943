"""Low-level operations inside numba kernels: calls by address, a BLAS matrix product, and denormal handling.

Denormal numbers (below 1.2e-38 in float32) make an x86 core ten to a hundred times slower, and decaying states of the
scan pass through them. A kernel may treat them as zero while it runs.
"""

from __future__ import annotations

import platform
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from model.jit.simd import call_llvm, llvm_intrinsic

_X86 = platform.machine() in {"x86_64", "AMD64"}
_ZERO_THEM = 0x8040  # MXCSR's "flush to zero" and "denormals are zero"
_I64, _I32, _F32 = ir.IntType(64), ir.IntType(32), ir.FloatType()


def _function(builder: Any, address: Any, *kinds: Any) -> Any:
    return builder.inttoptr(address, ir.FunctionType(ir.VoidType(), kinds).as_pointer())


@llvm_intrinsic
def load_int64(typing_context: Any, address: Any) -> Any:
    """Load the int64 at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(builder.inttoptr(args[0], _I64.as_pointer()))

    return types.int64(address), codegen


@llvm_intrinsic
def call_function(typing_context: Any, function: Any, argument: Any) -> Any:
    """Call `void function(int64 argument)` by its address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.call(_function(builder, args[0], _I64), [args[1]])
        return context.get_dummy_value()

    return types.none(function, argument), codegen


@llvm_intrinsic
def matrix_product(
    typing_context: Any, gemm: Any, sizes: Any, x: Any, x_row: Any, weight: Any, weight_row: Any, beta: Any, out: Any,
    out_row: Any,
) -> Any:  # fmt: skip
    """out = x weight^T + beta out, by a BLAS function at the address `gemm`.

    `sizes` is (rows, inner, columns); x is (rows, inner), weight (columns, inner), out (rows, columns), each with the
    stride of its rows. The types of x and weight are those of the BLAS function. BLAS is column-major, so it computes
    the transposed product; all its arguments are passed by address.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address, (rows, inner, columns) = args[0], cgutils.unpack_tuple(builder, args[1], 3)  # type: ignore[no-untyped-call]
        x_at, x_row, weight_at, weight_row, beta, out_at, out_row = args[2:]

        def by_address(value: Any, kind: Any) -> Any:
            place = cgutils.alloca_once(builder, kind)  # type: ignore[no-untyped-call]
            builder.store(builder.trunc(value, kind) if kind == _I32 else value, place)
            return builder.ptrtoint(place, _I64)

        whole = [by_address(value, _I32) for value in (columns, rows, inner, weight_row, x_row, out_row)]
        m, n, k, lda, ldb, ldc = whole
        transposed, plain = (by_address(ir.IntType(8)(ord(letter)), ir.IntType(8)) for letter in "TN")
        one, beta = by_address(_F32(1.0), _F32), by_address(beta, _F32)
        places = [transposed, plain, m, n, k, one, weight_at, lda, x_at, ldb, beta, out_at, ldc]
        builder.call(_function(builder, address, *[_I64] * len(places)), places)
        return context.get_dummy_value()

    return types.none(gemm, sizes, x, x_row, weight, weight_row, beta, out, out_row), codegen


def _control(builder: Any, name: str, place: Any) -> None:
    address = builder.bitcast(place, ir.IntType(8).as_pointer())
    call_llvm(builder, f"llvm.x86.sse.{name}", ir.VoidType(), address)


@llvm_intrinsic
def flush_denormals(typing_context: Any) -> Any:
    """Treat denormals as zero in this thread; returns the previous mode for `restore_denormals`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = cgutils.alloca_once_value(builder, _I32(0))  # type: ignore[no-untyped-call]
        if not _X86:
            return builder.load(place)
        _control(builder, "stmxcsr", place)
        before = builder.load(place)
        builder.store(builder.or_(before, _I32(_ZERO_THEM)), place)
        _control(builder, "ldmxcsr", place)
        return before

    return types.int32(), codegen


@llvm_intrinsic
def restore_denormals(typing_context: Any, before: Any) -> Any:
    """Restore the mode that `flush_denormals` returned."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if _X86:
            _control(builder, "ldmxcsr", cgutils.alloca_once_value(builder, args[0]))  # type: ignore[no-untyped-call]
        return context.get_dummy_value()

    return types.none(before), codegen
