"""The steps of a pass through the layers on a CPU: kernels, and where in memory they find what they compute with."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.backends.cpu.kernels import TOKENS, conv_kernel, norm_kernel, scan_kernel
from model.backends.cpu.program import WORDS, product_kernel
from model.backends.cpu.threads import Kernel
from model.backends.cpu.weights import LayerWeights
from model.config import VimConfig
from model.jit.simd import LANES

LEAST_COLUMNS = 96  # of one job of a product


@dataclass(frozen=True, slots=True)
class Address:
    """An address that is known when a pass begins: bytes behind one of its bases."""

    base: int
    offset: int = 0

    def plus(self, numbers: int) -> Address:
        """So many float32 numbers further."""
        return Address(self.base, self.offset + 4 * numbers)


WORK, RESIDUAL, OUT = Address(1), Address(2), Address(3)
Field = Tensor | Address | int | None
Step = tuple[Kernel, int, tuple[Field, ...]]  # kernel, jobs, fields


@dataclass(frozen=True, slots=True)
class Program:
    """Steps for some images: kernels read `words + bases[which]`."""

    words: np.ndarray  # (steps, WORDS) int64
    which: np.ndarray  # (steps, WORDS) int64
    numbers: int  # of float32 to work with


@dataclass(frozen=True, slots=True)
class Gemm:
    """How matrices are multiplied: the function in BLAS, and the dtype of what it multiplies."""

    gemm: int
    dtype: torch.dtype


class Layout:
    """The buffers of some images one behind the other, M = images x length rows, and steps that use them."""

    def __init__(self, config: VimConfig, images: int, length: int, threads: int, products: Gemm) -> None:
        self.config, self.images, self.length, self.threads = config, images, length, threads
        self.products = products
        self.rows = rows = images * length
        self.sides = 2 if config.bimamba == "v2" else 1  # directions that are convolved
        width, inner = config.embed_dim, config.d_inner
        self.x_proj_width = config.dt_rank + 2 * config.d_state
        sizes = (rows * width, rows * width, 2 * rows * inner, self.sides * rows * inner, rows * inner)
        self._end = 0
        self.normed_bf16, self.convolved_bf16, self.scanned_bf16 = (
            self._reserve(sizes[i] // 2) if products.dtype == torch.bfloat16 else None for i in (0, 3, 4)
        )
        self.normed, self.hidden, self.projected, self.convolved, self.scanned = map(self._reserve, sizes)
        self.selected = self._reserve(self.sides * rows * self.x_proj_width)

    def _reserve(self, numbers: int) -> Address:
        start, self._end = self._end, self._end + -(-numbers // LANES) * LANES
        return WORK.plus(start)

    def norm(
        self, hidden: Address | None, weight: Tensor, epsilon: Tensor, out: Address, narrow: Address | None = None
    ) -> Step:
        """See `norm_kernel`."""
        jobs = math.ceil(self.rows / TOKENS)
        return norm_kernel(), jobs, (self.rows, self.config.embed_dim, hidden, RESIDUAL, weight, epsilon, out, narrow)

    def product(self, x: Address, weight: Tensor, bias: Tensor | None, out: Address) -> Step:
        """See `product_kernel`; the weight is (columns, inner), or (sides, columns, inner)."""
        sides = len(weight) if weight.ndim == 3 else 1
        columns, inner = weight.shape[-2:]
        across = min(math.ceil(self.threads / sides), max(1, columns // LEAST_COLUMNS))
        down = math.ceil(self.threads / (sides * across))
        job_columns, job_rows = math.ceil(columns / across / LANES) * LANES, math.ceil(self.rows / down)
        jobs = sides * math.ceil(columns / job_columns) * math.ceil(self.rows / job_rows)
        fields = (x, self.rows * inner, weight, columns * inner, bias, out, self.rows * columns, columns)
        how = self.products.gemm, self.products.dtype.itemsize
        return product_kernel(), jobs, (self.rows, inner, columns, job_rows, job_columns, *fields, *how)

    def convolve(self, layer: LayerWeights) -> Step:
        """See `conv_kernel`."""
        inner, jobs = self.config.d_inner, self.images * math.ceil(self.length / TOKENS)
        sizes = (self.sides, self.images, self.length, inner)
        fields = (self.projected, 2 * inner, layer.conv_weight, layer.conv_bias, self.convolved, self.convolved_bf16)
        return conv_kernel(self.config.d_conv), jobs, (*sizes, *fields)

    def scan(self, layer: LayerWeights, constant: Tensor) -> Step:
        """See `scan_kernel`."""
        directions, rank, inner = layer.dt_proj.shape
        shared = self.sides < directions  # v1: both directions scan the same inputs
        side, u_side = (0, 0) if shared else (self.rows * self.x_proj_width, self.rows * inner)
        B, row = self.selected.plus(rank), self.x_proj_width
        fields: tuple[Field, ...] = (
            *(directions, self.length, inner, self.convolved, u_side, self.selected, side, row, layer.dt_proj),
            *(layer.dt_bias, layer.A_log2e, B, side, row, B.plus(self.config.d_state), side, row, layer.D),
            *(self.projected.plus(inner), 2 * inner, constant, self.scanned, self.scanned_bf16),
        )
        return scan_kernel(self.config.d_state, rank), self.images * inner // LANES, fields

    def program(self, steps: list[Step]) -> Program:
        """What the kernels read, but for the bases."""
        words, which = np.zeros((2, len(steps), WORDS), np.int64)
        for i, (kernel, jobs, fields) in enumerate(steps):
            words[i, 1], words[i, -1] = jobs, kernel.address
            for at, field in enumerate(fields, 2):
                words[i, at], which[i, at] = _word(field)
        return Program(words, which, self._end)


def _word(field: Field) -> tuple[int, int]:
    """A number or address, and the base that it counts from."""
    if isinstance(field, Address):
        return field.offset, field.base
    return (field.data_ptr() if isinstance(field, Tensor) else field or 0), 0
