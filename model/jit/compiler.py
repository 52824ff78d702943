"""Machine code for this CPU: compiled by numba on first use, and cached on disk. Never imports torch.

A kernel is a function of one address: that of a table of int64, which holds the next job, the number of jobs, and the
kernel's own fields. The kernels are in `model.backends.cpu.kernels`, `model.backends.cpu.program`,
`model.preprocessing.compiled.resize` and `model.preprocessing.compiled.cmyk`; `model.backends.cpu.threads` runs them on
several threads. Only this module changes numba's cache settings.
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

NEXT_JOB, JOBS, FIELDS = 0, 1, 2  # indices in the table

_SIGNATURE = types.void(types.intp)
_DEFAULT_CACHE = "~/.cache/vim-server/numba"
# The packages whose code or constants are compiled into kernels, below `model`. numba itself only notices a change of
# the file that contains the kernel.
KERNEL_PACKAGES = ("jit", "backends/cpu", "preprocessing")
MODEL = Path(__file__).parents[1]

_CONFIG_LOCK = threading.Lock()  # numba's configuration is global


@llvm_intrinsic
def take_job(typing_context: Any, table: Any) -> Any:
    """Atomically take the next job number from the table; a number >= the number of jobs means that no job is left."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", place, ir.IntType(64)(1), "monotonic")

    return types.int64(table), codegen


def fields(count: int) -> Any:
    """Return a function for kernels that reads a table: -> (number of jobs, field, ..., field) with `count` fields."""

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
    """Return numba's CFunc of a kernel, loaded from the cache or compiled now.

    The cache is below `cache_dir`, else NUMBA_CACHE_DIR, else ~/.cache/vim-server/numba. A cache that cannot be used is
    logged, and the kernel is compiled without it. Raises RuntimeError for a kernel that cannot be compiled.
    """
    try:
        with _CONFIG_LOCK, _cache_directory(cache_dir):
            return _compile(function, cache=True)
    except Exception as error:  # an unwritable or damaged cache must not prevent the start
        log.warning("the cache of compiled code cannot be used (%s: %s)", type(error).__name__, error)
    try:
        return _compile(function, cache=False)
    except NumbaError as error:
        raise RuntimeError(f"{function.__name__} cannot be compiled: {error}") from error


def _compile(function: Callable[[Any], None], *, cache: bool) -> Any:
    return cfunc(_SIGNATURE, cache=cache, error_model="numpy")(function)


@contextlib.contextmanager
def _cache_directory(cache_dir: Path | None) -> Iterator[None]:
    """Set numba's cache to a directory for `cache_key()`, and restore the settings afterwards."""
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
    """Return twelve hexadecimal digits of the files in KERNEL_PACKAGES and the versions that affect compiled code."""
    versions = (platform.python_version(), numba.__version__, llvmlite.__version__, np.__version__)
    digest = hashlib.sha256(" ".join(versions).encode())
    for path in kernel_sources():
        content = path.read_bytes()
        digest.update(f"{path.relative_to(MODEL).as_posix()} {len(content)} ".encode())
        digest.update(content)
    return digest.hexdigest()[:12]


def kernel_sources() -> list[Path]:
    """Return every Python file in KERNEL_PACKAGES, sorted."""
    return sorted(path for package in KERNEL_PACKAGES for path in (MODEL / package).rglob("*.py"))
