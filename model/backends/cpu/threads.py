"""Kernels on the threads of torch's OpenMP, hence as many as torch may use.

Each thread takes jobs from the table until none is left, so a thread that is late or disturbed costs one job, not its
share. Where torch has no OpenMP the calling thread does everything. Several threads may start kernels at once.
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
    """A compiled function and the means to run it on all threads."""

    def __init__(self, function: Callable[[Any], None]) -> None:
        self._code = compile_kernel(function)
        self._alone = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self._code.address)

    @property
    def address(self) -> int:
        """Of the machine code."""
        return int(self._code.address)

    def __call__(self, jobs: int, *fields: Field) -> None:
        """Run all jobs. A tensor stands for its address, None for 0; shapes and layouts are the caller's business."""
        if jobs == 0:
            return
        places = [field.data_ptr() if isinstance(field, Tensor) else field or 0 for field in fields]
        table = (ctypes.c_int64 * (FIELDS + len(fields)))(0, jobs, *places)
        threads = min(torch.get_num_threads(), jobs)
        team = _openmp_parallel()
        if team is None or threads <= 1:
            self._alone(table)
        else:
            team(self.address, table, threads, 0)

    @property
    def from_cache(self) -> bool:
        """Was the machine code on disk?"""
        return bool(self._code.cache_hits)


@cache
def barrier() -> int | None:
    """The address of `void GOMP_barrier(void)`, at which the threads of a team wait for one another."""
    return None if _openmp_parallel() is None else ctypes.cast(ctypes.CDLL(None).GOMP_barrier, ctypes.c_void_p).value


@cache
def sgemm() -> int | None:
    """The address of Fortran's `sgemm` in torch, if that is Intel's, which runs on one thread inside a team."""
    return _blas("sgemm_")


@cache
def bfloat16_gemm() -> int | None:
    """The address of the same product of bfloat16 numbers, summed in float32, where that is faster: with AMX."""
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
    """`void GOMP_parallel(void (*fn)(void *), void *data, unsigned num_threads, unsigned flags)` of torch's OpenMP.

    LLVM's and Intel's OpenMP have it too.
    """
    try:
        function = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):
        return None
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    function.restype = None
    return function
