"""Machine code for this CPU: compiled by numba when first needed, and kept on disk. No torch.

A kernel is a function of one address, that of a table of int64: the next job, the number of jobs, and the kernel's own
fields. Which numbers kernels compute is `model.backends.cpu.kernels`, `model.preprocessing.compiled.resize` and
`model.preprocessing.compiled.cmyk`; who runs their jobs is `model.backends.cpu.threads`. This module is the only one
that touches numba's cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import platform
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np
from llvmlite import ir
from numba import cfunc, types
from numba.core.errors import NumbaError

from model.jit.simd import llvm_intrinsic

log = logging.getLogger("vim.model")

NEXT_JOB, JOBS, FIELDS = 0, 1, 2  # places in the table

_SIGNATURE = types.void(types.intp)
_DEFAULT_CACHE = "~/.cache/vim-server/numba"
# The packages whose code or constants are compiled into kernels, below `model`. numba itself only notices a change of
# the file that contains the kernel.
KERNEL_PACKAGES = ("jit", "backends/cpu", "preprocessing")
MODEL = Path(__file__).parents[1]

_CONFIG_LOCK = threading.Lock()  # numba's configuration is global


@llvm_intrinsic
def take_job(typing_context: Any, table: Any) -> Any:
    """The number of a job that no other thread has; at least the number of jobs when none is left."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", place, ir.IntType(64)(1), "monotonic")

    return types.int64(table), codegen


def fields(count: int) -> Any:
    """A function for kernels: table -> (number of jobs, field, ..., field) with `count` fields."""

    @llvm_intrinsic
    def read(typing_context: Any, table: Any) -> Any:
        kind = types.UniTuple(types.int64, 1 + count)  # type: ignore[no-untyped-call]

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            start = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
            numbers = [builder.load(builder.gep(start, [ir.IntType(64)(JOBS + i)])) for i in range(1 + count)]
            return context.make_tuple(builder, kind, numbers)

        return kind(table), codegen

    return read


def compile_kernel(function: Callable[[Any], None], cache_dir: Path | None = None) -> Any:
    """numba's CFunc of a kernel, from the disk (`cache_dir`, else NUMBA_CACHE_DIR, else a default) or compiled now.

    Raises RuntimeError.
    """
    try:
        with _CONFIG_LOCK, _cache_directory(cache_dir):
            return _compile(function, cache=True)
    except Exception as error:  # an unwritable or damaged cache costs a compilation, not the start
        log.warning("compiled code cannot be kept or read (%s: %s)", type(error).__name__, error)
    try:
        return _compile(function, cache=False)
    except NumbaError as error:
        raise RuntimeError(f"{function.__name__} cannot be compiled: {error}") from error


def _compile(function: Callable[[Any], None], *, cache: bool) -> Any:
    return cfunc(_SIGNATURE, cache=cache, error_model="numpy")(function)


@contextlib.contextmanager
def _cache_directory(cache_dir: Path | None) -> Iterator[None]:
    """Point numba at a directory of this version, and nowhere else."""
    config: Any = numba.config
    before = config.CACHE_DIR, config.CACHE_LOCATOR_CLASSES
    base = cache_dir or Path(config.CACHE_DIR or os.path.expanduser(_DEFAULT_CACHE))
    config.CACHE_DIR, config.CACHE_LOCATOR_CLASSES = str(base / cache_key()), "UserProvidedCacheLocator"
    try:
        yield
    finally:
        config.CACHE_DIR, config.CACHE_LOCATOR_CLASSES = before


@cache
def cache_key() -> str:
    """Twelve hexadecimal digits of the files in KERNEL_PACKAGES and of the versions that decide the machine code."""
    versions = (platform.python_version(), numba.__version__, llvmlite.__version__, np.__version__)
    digest = hashlib.sha256(" ".join(versions).encode())
    for path in kernel_sources():
        content = path.read_bytes()
        digest.update(f"{path.relative_to(MODEL).as_posix()} {len(content)} ".encode())
        digest.update(content)
    return digest.hexdigest()[:12]


def kernel_sources() -> list[Path]:
    """Every Python file in KERNEL_PACKAGES, sorted."""
    return sorted(path for package in KERNEL_PACKAGES for path in (MODEL / package).rglob("*.py"))
