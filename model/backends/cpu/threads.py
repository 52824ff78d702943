"""Run kernels on torch's OpenMP threads, as many as torch may use.

Each thread takes jobs from the table until none is left, so a delayed thread delays one job, not an equal share. Where
torch has no OpenMP the calling thread runs all jobs. Several threads may start kernels at the same time.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import torch
from torch import Tensor

from model.jit.compiler import FIELDS, compile_kernel

Field = Tensor | int | None


class Kernel:
    """A compiled function that can be run on all threads."""

    def __init__(self, function: Callable[[Any], None]) -> None:
        self._code = compile_kernel(function)
        self._call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self._code.address)

    @property
    def address(self) -> int:
        """Address of the machine code."""
        return int(self._code.address)

    def __call__(self, jobs: int, *fields: Field) -> None:
        """Run all jobs. Tensors are passed by address, None as 0. Shapes and layouts are not checked."""
        if jobs == 0:
            return
        words = [field.data_ptr() if isinstance(field, Tensor) else field or 0 for field in fields]
        table = (ctypes.c_int64 * (FIELDS + len(fields)))(0, jobs, *words)
        threads = min(torch.get_num_threads(), jobs)
        run_parallel = _openmp_parallel()
        if run_parallel is None or threads <= 1:
            self._call(table)
        else:
            run_parallel(self.address, table, threads, 0)

    @property
    def from_cache(self) -> bool:
        """Whether the machine code was loaded from disk."""
        return bool(self._code.cache_hits)


@cache
def barrier() -> int | None:
    """Return the address of `void GOMP_barrier(void)`, which waits for all threads of a parallel region, or None."""
    return None if _openmp_parallel() is None else ctypes.cast(ctypes.CDLL(None).GOMP_barrier, ctypes.c_void_p).value


@cache
def sgemm() -> int | None:
    """Return the address of Fortran's `sgemm` in torch if it is Intel MKL's, else None.

    MKL uses one thread when it is called inside a parallel region.
    """
    return _blas("sgemm_")


@cache
def bfloat16_gemm() -> int | None:
    """Return the address of MKL's bfloat16 product with float32 sums; None without AMX, where it is slower."""
    if sgemm() is None or not llvm.get_host_cpu_features().get("amx-bf16"):
        return None
    return _blas("gemm_bf16bf16f32_")


def _blas(name: str) -> int | None:
    if not torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
        return None
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        return ctypes.cast(getattr(library, name), ctypes.c_void_p).value
    except (AttributeError, OSError):
        return None


@cache
def _openmp_parallel() -> Any:
    """Return `GOMP_parallel` of torch's OpenMP, or None; LLVM's and Intel's OpenMP have it too.

    Its signature is void (void (*fn)(void *), void *data, unsigned num_threads, unsigned flags).
    """
    try:
        function = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):
        return None
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    function.restype = None
    return function
