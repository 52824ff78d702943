"""Numbers below the smallest normal one count as zero, inside a kernel that asks for it.

An x86 core computes with denormal numbers ten to a hundred times as slowly, and a state of the scan that is forgotten
quickly passes through them. Nobody sees the difference: they are below 1e-38.
"""

from __future__ import annotations

import platform
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from model.jit.simd import call, emitted

_X86 = platform.machine() in {"x86_64", "AMD64"}
_I32 = ir.IntType(32)
_ZERO_THEM = 0x8040  # MXCSR's "flush to zero" and "denormals are zero"


def _control(builder: Any, name: str, place: Any) -> None:
    address = builder.bitcast(place, ir.IntType(8).as_pointer())
    call(builder, f"llvm.x86.sse.{name}", ir.VoidType(), address)


@emitted
def as_zero(typing_context: Any) -> Any:
    """From here on denormals are zero in this thread; what `as_before` takes."""

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


@emitted
def as_before(typing_context: Any, before: Any) -> Any:
    """The thread computes again as its caller wants it."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if _X86:
            _control(builder, "ldmxcsr", cgutils.alloca_once_value(builder, args[0]))  # type: ignore[no-untyped-call]
        return context.get_dummy_value()

    return types.none(before), codegen
