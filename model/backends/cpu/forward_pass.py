"""One forward pass through all layers on a CPU, as programs (`model.backends.cpu.program`), and which images run where.

As many images as can be divided evenly among the threads are computed separately: each thread runs a few of them
through all layers alone, so no thread waits and data stays in the core's cache. All threads compute the remaining
images together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.backends.cpu import threads as cpu_threads
from model.backends.cpu.kernels import TOKENS, conv_kernel, norm_kernel, scan_kernel
from model.backends.cpu.program import WORDS, product_kernel, separate_programs_kernel, shared_program_kernel
from model.backends.cpu.threads import Kernel
from model.backends.cpu.weights import LayerWeights
from model.backends.cpu.workspace import Workspace
from model.config import VimConfig
from model.jit.simd import LANES

# Images of one program: they share the weights that are loaded; with more, threads would wait for the slowest one.
MAX_PROGRAM_IMAGES = 4
LEAST_COLUMNS = 96  # output columns of one job of a matrix product


@dataclass(frozen=True, slots=True)
class Address:
    """A memory address that is known when a pass begins: a byte offset from one of the pass's bases."""

    base: int
    offset: int = 0

    def plus(self, numbers: int) -> Address:
        """Return the address `numbers` float32 numbers further."""
        return Address(self.base, self.offset + 4 * numbers)


WORK, RESIDUAL, OUT = Address(1), Address(2), Address(3)
Field = Tensor | Address | int | None
Step = tuple[Kernel, int, tuple[Field, ...]]  # kernel, jobs, fields


@dataclass(frozen=True, slots=True)
class Program:
    """The steps for a number of images: a pass gives kernels the words `words + bases[which]`."""

    words: np.ndarray  # (steps, WORDS) int64
    which: np.ndarray  # (steps, WORDS) int64
    numbers: int  # float32 numbers of workspace


@dataclass(frozen=True, slots=True)
class Gemm:
    """The matrix product: the address of the BLAS function, and the dtype of its factors."""

    gemm: int
    dtype: torch.dtype


class Layout:
    """The buffers for a number of images in one block of memory, and the steps that use them."""

    def __init__(self, config: VimConfig, images: int, length: int, threads: int, products: Gemm) -> None:
        self.config, self.images, self.length, self.threads = config, images, length, threads
        self.products = products
        self.rows = rows = images * length
        self.sides = 2 if config.bimamba == "v2" else 1  # directions of the convolution
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
        """A step of `model.backends.cpu.kernels.norm_kernel`."""
        jobs = math.ceil(self.rows / TOKENS)
        return norm_kernel(), jobs, (self.rows, self.config.embed_dim, hidden, RESIDUAL, weight, epsilon, out, narrow)

    def product(self, x: Address, weight: Tensor, bias: Tensor | None, out: Address) -> Step:
        """A step of `model.backends.cpu.program.product_kernel`; the weight is (N, K) or (C, N, K)."""
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
        """A step of `model.backends.cpu.kernels.conv_kernel`."""
        inner, jobs = self.config.d_inner, self.images * math.ceil(self.length / TOKENS)
        sizes = (self.sides, self.images, self.length, inner)
        fields = (self.projected, 2 * inner, layer.conv_weight, layer.conv_bias, self.convolved, self.convolved_bf16)
        return conv_kernel(self.config.d_conv), jobs, (*sizes, *fields)

    def scan(self, layer: LayerWeights, constant: Tensor) -> Step:
        """A step of `model.backends.cpu.kernels.scan_kernel`."""
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
        """Encode the steps for the kernels, without the bases."""
        words, which = np.zeros((2, len(steps), WORDS), np.int64)
        for i, (kernel, jobs, fields) in enumerate(steps):
            words[i, 1], words[i, -1] = jobs, kernel.address
            for at, field in enumerate(fields, 2):
                words[i, at], which[i, at] = _word(field)
        return Program(words, which, self._end)


def _word(field: Field) -> tuple[int, int]:
    """Return a number or address, and the index of the base that is added to it."""
    if isinstance(field, Address):
        return field.offset, field.base
    return (field.data_ptr() if isinstance(field, Tensor) else field or 0), 0


class Pass:
    """Tokens before the first layer -> tokens after the final norm, in float32."""

    def __init__(
        self, config: VimConfig, layers: list[LayerWeights], norm: Tensor, constant: Tensor, products: Gemm
    ) -> None:
        self._config, self._layers, self._norm, self._constant = config, layers, norm, constant
        self._products = products
        self._epsilon = torch.tensor([config.norm_epsilon])
        self._workspace = Workspace()
        self._programs: dict[tuple[int, int, int], Program] = {}

    def __call__(self, residual: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D); the argument is overwritten."""
        barrier = cpu_threads.barrier() or 0
        threads = torch.get_num_threads() if barrier else 1
        images, out = len(residual), torch.empty_like(residual)
        apart = images - images % threads
        if apart:
            each = max(n for n in range(1, MAX_PROGRAM_IMAGES + 1) if apart // threads % n == 0)
            self._run(residual[:apart], out[:apart], each, 1, 0)
        if apart < images:
            self._run(residual[apart:], out[apart:], images - apart, threads, barrier)
        return out

    def _run(self, residual: Tensor, out: Tensor, each: int, threads: int, barrier: int) -> None:
        """Run programs of `each` images: one by all threads together, or several, each by one thread."""
        program = self._program(each, residual.shape[1], threads)
        count = len(residual) // each
        with self._workspace.borrow(count * program.numbers) as work:
            starts = [
                [0, place.data_ptr(), residual[i * each].data_ptr(), out[i * each].data_ptr()]
                for i, place in enumerate(work.view(count, -1))
            ]
            # (programs, steps, WORDS)
            steps = np.stack([program.words + np.array(start)[program.which] for start in starts])
            if threads > 1:
                shared_program_kernel()(threads, steps.shape[1], steps.ctypes.data, barrier)
            else:
                separate_programs_kernel()(len(steps), steps.shape[1], steps.ctypes.data, 0)

    def _program(self, images: int, length: int, threads: int) -> Program:
        key = images, length, threads
        if key not in self._programs:
            layout = Layout(self._config, images, length, threads, self._products)
            self._programs[key] = layout.program(list(self._steps(layout)))
        return self._programs[key]

    def _steps(self, at: Layout) -> Iterator[Step]:
        hidden: Address | None = None
        for layer in self._layers:
            yield at.norm(hidden, layer.norm, self._epsilon, at.normed, at.normed_bf16)
            yield at.product(at.normed_bf16 or at.normed, layer.in_proj, layer.in_proj_bias, at.projected)
            yield at.convolve(layer)
            yield at.product(at.convolved_bf16 or at.convolved, layer.x_proj, None, at.selected)
            yield at.scan(layer, self._constant)
            yield at.product(at.scanned_bf16 or at.scanned, layer.out_proj, layer.out_proj_bias, at.hidden)
            hidden = at.hidden
        yield at.norm(hidden, self._norm, self._epsilon, OUT)
