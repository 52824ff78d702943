"""Machine code for this CPU: compiled by numba when first needed, kept on disk, run by torch's own threads.

A kernel is a function of one address, that of a table of int64: the next job, the number of jobs, and the kernel's own
fields. Each thread takes jobs from the table until none is left, so a thread that is late or disturbed costs one job,
not its share. The threads are those of torch's OpenMP, hence as many as torch may use; where torch has no OpenMP the
calling thread does everything. Kernels may be started from several threads at once.

Which numbers a kernel computes is `model.kernels`; this module is the only one that touches numba's cache.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numba
import torch
from llvmlite import ir
from numba import cfunc, types
from numba.core.errors import NumbaError
from torch import Tensor

from model.vectors import emitted

log = logging.getLogger("vim.model")

NEXT_JOB, JOBS, FIELDS = 0, 1, 2  # places in the table

_SIGNATURE = types.void(types.intp)
_DEFAULT_CACHE = "~/.cache/vim-server/numba"
# numba notices a change of the file that a kernel stands in, but not of these, which are compiled into every kernel.
_COMPILED_IN = ("jit.py", "vectors.py")

Field = Tensor | int | None


class Kernel:
    """A compiled function and the means to run it on all threads."""

    def __init__(self, function: Callable[[Any], None]) -> None:
        self._code = _compiled(function)
        self._alone = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self._code.address)

    def __call__(self, jobs: int, *fields: Field) -> None:
        """Run all jobs. A tensor stands for its address, None for 0; shapes and layouts are the caller's business."""
        if jobs == 0:
            return
        places = [field.data_ptr() if isinstance(field, Tensor) else field or 0 for field in fields]
        table = (ctypes.c_int64 * (FIELDS + len(fields)))(0, jobs, *places)
        threads = min(torch.get_num_threads(), jobs)
        team = _team()
        if team is None or threads <= 1:
            self._alone(table)
        else:
            team(self._code.address, table, threads, 0)

    @property
    def from_cache(self) -> bool:
        """Was the machine code on disk?"""
        return bool(self._code.cache_hits)


@cache
def _team() -> Any:
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


@emitted
def take_job(typing_context: Any, table: Any) -> Any:
    """The number of a job that no other thread has; at least the number of jobs when none is left."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", place, ir.IntType(64)(1), "monotonic")

    return types.int64(table), codegen


def fields(count: int) -> Any:
    """A function for kernels: table -> (number of jobs, field, ..., field) with `count` fields."""

    @emitted
    def read(typing_context: Any, table: Any) -> Any:
        kind = types.UniTuple(types.int64, 1 + count)  # type: ignore[no-untyped-call]

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            start = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
            numbers = [builder.load(builder.gep(start, [ir.IntType(64)(JOBS + i)])) for i in range(1 + count)]
            return context.make_tuple(builder, kind, numbers)

        return kind(table), codegen

    return read


def _compiled(function: Callable[[Any], None]) -> Any:
    try:
        with _cache_directory():
            return _code(function, cache=True)
    except Exception as error:  # an unwritable or damaged cache costs a compilation, not the start
        log.warning("compiled code cannot be kept or read (%s: %s)", type(error).__name__, error)
    try:
        return _code(function, cache=False)
    except NumbaError as error:
        raise RuntimeError(f"{function.__name__} cannot be compiled: {error}") from error


def _code(function: Callable[[Any], None], *, cache: bool) -> Any:
    return cfunc(_SIGNATURE, cache=cache, error_model="numpy")(function)


@contextlib.contextmanager
def _cache_directory() -> Iterator[None]:
    """Point numba at NUMBA_CACHE_DIR, or a default, and there at a directory of this version; nowhere else."""
    config: Any = numba.config
    before = config.CACHE_DIR, config.CACHE_LOCATOR_CLASSES
    base = Path(config.CACHE_DIR or os.path.expanduser(_DEFAULT_CACHE))
    config.CACHE_DIR, config.CACHE_LOCATOR_CLASSES = str(base / _version()), "UserProvidedCacheLocator"
    try:
        yield
    finally:
        config.CACHE_DIR, config.CACHE_LOCATOR_CLASSES = before


@cache
def _version() -> str:
    texts = b"".join((Path(__file__).parent / name).read_bytes() for name in _COMPILED_IN)
    return hashlib.sha256(texts).hexdigest()[:12]
