"""Machine code for this CPU: compiled by numba on first use, and cached on disk. Never imports torch.

A kernel is a function of one address: that of a table of int64, which holds the next job, the number of jobs, and the
kernel's own fields. The kernels are in `model.backends.cpu.kernels`, `model.backends.cpu.program`,
`model.preprocessing.compiled.resize` and `model.preprocessing.compiled.cmyk`; `model.backends.cpu.threads` runs them on
several threads. `model.jit.kept_code` is the cache.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core.ccallback import CFunc
from numba.core.errors import NumbaError

from model.jit import kept_code, levels
from model.jit.simd import llvm_intrinsic

NEXT_JOB, JOBS, FIELDS = 0, 1, 2  # indices in the table

_SIGNATURE = types.void(types.intp)
_DEFAULT_CACHE = "~/.cache/vim-server/numba"
# The packages whose code or constants are compiled into kernels, below `model`. numba itself only notices a change of
# the file that contains the kernel.
KERNEL_PACKAGES = ("jit", "backends/cpu", "preprocessing")
MODEL = Path(__file__).parents[1]


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

    Code that was compiled ahead of time (`model.jit.levels`) comes first. The cache is below `cache_dir`, else
    NUMBA_CACHE_DIR, else ~/.cache/vim-server/numba. A cache that cannot be used is logged, once, and the kernel is
    compiled without it. Raises RuntimeError for a kernel that cannot be compiled.
    """
    kernel: Any = CFunc(function, (_SIGNATURE.args, _SIGNATURE.return_type), {}, {"error_model": "numpy"})
    kernel._cache = kept_code.KeptCode(function, cache_key(), _directory(cache_dir), levels.SHIPPED)
    try:
        kernel.compile()
    except NumbaError as error:
        raise RuntimeError(f"{function.__name__} cannot be compiled: {error}") from error
    return kernel


def _directory(cache_dir: Path | None) -> Path | None:
    """The directory of all compiled code; None without one that is set and without a home directory."""
    if cache_dir or numba.config.CACHE_DIR:  # type: ignore[attr-defined]
        return cache_dir or Path(numba.config.CACHE_DIR)  # type: ignore[attr-defined]
    try:
        return Path(_DEFAULT_CACHE).expanduser()
    except RuntimeError:  # a container's arbitrary user
        return None


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
