"""CMYK pixels of a JPEG file -> RGB as Pillow converts them, in place: three bytes for four.

Such a file stores inverted values: the light that each ink transmits. Pillow multiplies those of cyan, magenta and
yellow by that of black, and rounds.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

from llvmlite import ir
from numba import types

from model.jit.compiler import compile_kernel, fields
from model.jit.simd import llvm_intrinsic
from model.preprocessing.compiled.filter_weights import GROUP
from model.preprocessing.compiled.simd_bytes import BLOCK, load_vector, pointer, shuffle
from model.preprocessing.resize import Pixels

_BYTES, _WORDS = (ir.VectorType(ir.IntType(bits), BLOCK) for bits in (8, 16))
_PIXELS = range(BLOCK // GROUP)
_BLACK = [GROUP * pixel + GROUP - 1 for pixel in _PIXELS for _ in range(GROUP)]
_COLOURS = [GROUP * pixel + colour for pixel in _PIXELS for colour in range(3)]

_fields: Any = fields(2)


class CmykToRgb:
    """The compiled conversion. Construction compiles the kernel or loads it from the cache (see `model.jit.compiler`).

    Raises RuntimeError if the kernel cannot be compiled.
    """

    def __init__(self, cache_dir: Path | None = None) -> None:
        self._code = compile_kernel(_kernel(), cache_dir)

    def __call__(self, memory: Pixels) -> None:
        """Convert contiguous bytes in whole blocks of 64; the first three quarters become RGB. Releases the GIL.

        Raises ValueError for any other memory.
        """
        if memory.size % BLOCK or not memory.flags.c_contiguous or not memory.flags.writeable:
            raise ValueError(f"{memory.size} bytes are not whole blocks of {BLOCK} that can be written to")
        table = (ctypes.c_int64 * 4)(
            0, 0, memory.ctypes.data, memory.size // BLOCK
        )  # a name keeps it alive during the call
        self._code.ctypes(ctypes.addressof(table))


@llvm_intrinsic
def _to_rgb(typing_context: Any, to: Any, place: Any) -> Any:
    """Convert 16 pixels and write a whole block, whose last quarter is undefined."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        cmyk = load_vector(builder, args[1], _BYTES)
        wide, black = (builder.zext(some, _WORDS) for some in (cmyk, shuffle(builder, cmyk, _BLACK)))
        half, eight = (ir.Constant(_WORDS, [value] * BLOCK) for value in (128, 8))
        product = builder.add(builder.mul(wide, black), half)
        rounded = builder.lshr(builder.add(product, builder.lshr(product, eight)), eight)  # product / 255
        chosen = shuffle(builder, builder.trunc(rounded, _BYTES), _COLOURS + [0] * (BLOCK - len(_COLOURS)))
        builder.store(chosen, pointer(builder, args[0], _BYTES), align=1)
        return context.get_dummy_value()

    return types.none(types.int64, types.int64), codegen


def _kernel() -> Any:
    def convert(table: Any) -> None:
        _, memory, blocks = _fields(table)
        for block in range(blocks):
            _to_rgb(memory + 48 * block, memory + 64 * block)

    return convert
