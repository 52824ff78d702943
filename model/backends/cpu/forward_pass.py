"""One forward pass through all layers on a CPU, as programs (`model.backends.cpu.program`), and which images run where.

As many images as can be divided evenly among the threads are computed separately: each thread runs a few of them
through all layers alone, so no thread waits and data stays in the core's cache. All threads compute the remaining
images together.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from model.backends.cpu import threads as cpu_threads
from model.backends.cpu.program import separate_programs_kernel, shared_program_kernel
from model.backends.cpu.steps import OUT, Address, Gemm, Layout, Program, Step
from model.backends.cpu.weights import LayerWeights
from model.backends.cpu.workspace import Workspace
from model.config import VimConfig

# Images of one program: they share the weights that are loaded; with more, threads would wait for the slowest one.
MAX_PROGRAM_IMAGES = 4


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
