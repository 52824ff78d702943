"""Kernels that run a whole forward pass as one list of steps, so that Python and OpenMP are called once per pass.

A step is a kernel's table (`model.jit.compiler`) followed by the kernel's address. Either all threads execute every
step together, with a barrier after each, or each thread executes whole programs alone.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from model.backends.cpu.threads import Kernel
from model.jit.compiler import fields, take_job
from model.jit.intrinsics import call_function, load_int64, matrix_product
from model.jit.simd import LANES, load, store

WORDS = 28  # of a step: the table of the kernel with the most fields, and the kernel's address at the end
_F = np.float32
_KERNEL, _STEP = 8 * (WORDS - 1), 8 * WORDS

_product_fields: Any = fields(15)
_program_fields: Any = fields(3)


@cache
def product_kernel() -> Kernel:
    """out = x weight^T + bias, for each side.

    Fields: rows, K, N; rows and columns of a job; x (rows, K) and its side; weight (N, K) and its side; bias (N) or 0;
    out (rows, N), its side and row; the address of the BLAS function; bytes of a number of x and weight.
    Jobs: sides times blocks of rows times blocks of columns.
    """

    def multiply(table: Any) -> None:
        (
            jobs, rows, inner, width, job_rows, job_columns, x, x_side, weight, weight_side, bias, out, out_side,
            out_row, gemm, size,
        ) = _product_fields(table)  # fmt: skip
        across = (width + job_columns - 1) // job_columns
        down = (rows + job_rows - 1) // job_rows
        job = take_job(table)
        while job < jobs:
            side, rest = job // (down * across), job % (down * across)
            row, column = rest // across * job_rows, rest % across * job_columns
            count, columns = min(job_rows, rows - row), min(job_columns, width - column)
            at = out + 4 * (side * out_side + row * out_row + column)
            beta = _F(0)
            if bias != 0:
                beta = _F(1)
                for r in range(count):
                    for c in range(0, columns, LANES):
                        store(at, r * out_row + c, load(bias, column + c))
            matrix_product(
                gemm, (count, inner, columns), x + size * (side * x_side + row * inner), inner,
                weight + size * (side * weight_side + column * inner), inner, beta, at, out_row,
            )  # fmt: skip
            job = take_job(table)

    return Kernel(multiply)


@cache
def shared_program_kernel() -> Kernel:
    """All threads execute every step.

    Fields: steps; address of the first; address of a barrier, or 0 for one thread.
    """

    def together(table: Any) -> None:
        _, steps, first, barrier = _program_fields(table)
        for step in range(first, first + steps * _STEP, _STEP):
            call_function(load_int64(step + _KERNEL), step)
            if barrier != 0:
                call_function(barrier, 0)

    return Kernel(together)


@cache
def separate_programs_kernel() -> Kernel:
    """Each thread executes whole programs.

    Fields: steps of a program; address of the first; 0.
    Jobs: programs.
    """

    def apart(table: Any) -> None:
        jobs, steps, first, _ = _program_fields(table)
        program = take_job(table)
        while program < jobs:
            start = first + program * steps * _STEP
            for step in range(start, start + steps * _STEP, _STEP):
                call_function(load_int64(step + _KERNEL), step)
            program = take_job(table)

    return Kernel(apart)
