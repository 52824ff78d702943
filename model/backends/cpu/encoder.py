"""All layers of a Vim as one function on a CPU.

If torch's BLAS can be called from compiled code, a pass is one list of steps (`model.backends.cpu.forward_pass`).
Otherwise Python calls one step after the other: torch for the four kinds of matrix products, and
`model.backends.cpu.kernels` for everything else.

In a bfloat16 model the products are computed in bfloat16 and summed in float32, where that is faster: in the list of
steps on a CPU with AMX, otherwise by torch where oneDNN supports it. Everything else is float32, as in a float32 model.

Buffers are allocated once per forward pass and used by all layers. No data is transposed or copied between the steps:
kernels read the two halves of in_proj's output, and the three parts of x_proj's, in place.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model.backends.cpu import threads
from model.backends.cpu.weights import LayerWeights, prepare
from model.config import VimConfig
from model.vim import Vim

if TYPE_CHECKING:
    from collections.abc import Callable

    from model.backends.cpu.forward_pass import Gemm, Pass

WIDTH = 16  # model.jit.simd.LANES


def unsupported(vim: Vim) -> str | None:
    """Return None, or in a few words why this model's layers cannot be fused here."""
    config, dtype = vim.config, vim.patch_embed.proj.weight.dtype
    reasons = {
        f"dtype is {str(dtype).removeprefix('torch.')}": dtype not in (torch.float32, torch.bfloat16),
        "norm is layer": config.norm == "layer",
        "positions are rotary": config.rope,
        "layers run in pairs": config.bidirectional_layers,
        f"embed_dim {config.embed_dim} is not a multiple of {WIDTH}": config.embed_dim % WIDTH,
        f"d_inner {config.d_inner} is not a multiple of {WIDTH}": config.d_inner % WIDTH,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def encoder(vim: Vim) -> Callable[[Tensor], Tensor]:
    """Return the function for `vim.encoder`: tokens (B, L, D) -> tokens after the final norm (B, L, D)."""
    return _Encoder(vim)


class _Buffers:
    """The outputs of a layer's steps for a batch of images: M = B L rows."""

    def __init__(self, config: VimConfig, rows: int, convolved: int) -> None:
        width, inner = config.embed_dim, config.d_inner
        self.normed, self.hidden = (torch.empty(rows, width) for _ in range(2))
        self.projected = torch.empty(rows, 2 * inner)
        self.convolved = torch.empty(convolved, rows, inner)
        self.selected = torch.empty(convolved, rows, config.dt_rank + 2 * config.d_state)
        self.scanned = torch.empty(rows, inner)


class _Encoder:
    """Tokens before the first layer -> tokens after the final norm."""

    def __init__(self, vim: Vim) -> None:
        from model.backends.cpu.kernels import conv_kernel, norm_kernel, scan_kernel

        self.vim, self.config = vim, vim.config
        self.narrow = vim.patch_embed.proj.weight.dtype == torch.bfloat16
        products = _gemm(self.narrow)
        dtype = products.dtype if products else torch.float32
        self.layers = [prepare(layer.norm.weight, layer.mixer, dtype) for layer in vim.layers]  # type: ignore[arg-type, union-attr]
        self.epsilon = torch.tensor([vim.config.norm_epsilon])
        halve = vim.config.bimamba == "v2" and vim.config.divide_out
        self.constant = torch.tensor([0.5 if halve else 1.0])
        self.forward_pass = None if products is None else self._one_program(products)
        self.norm, self.conv = norm_kernel(), conv_kernel(vim.config.d_conv)
        self.scan = scan_kernel(vim.config.d_state, vim.config.dt_rank)

    def _one_program(self, products: Gemm) -> Pass:
        from model.backends.cpu.forward_pass import Pass

        return Pass(self.config, self.layers, self.vim.norm_f.weight, self.constant, products)

    def __call__(self, tokens: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        if torch.is_grad_enabled() and tokens.requires_grad:
            return self.vim.encode(tokens)
        with _bfloat16_matmul() if self.narrow else contextlib.nullcontext():
            return self._run(tokens).to(tokens.dtype)

    def _run(self, tokens: Tensor) -> Tensor:
        images, length, width = tokens.shape
        residual = tokens.detach().to(torch.float32, copy=True).contiguous()
        if self.forward_pass is not None:
            return self.forward_pass(residual)
        residual = residual.view(-1, width)
        buffers = _Buffers(self.config, len(residual), len(self.layers[0].x_proj))
        hidden: Tensor | None = None
        for layer in self.layers:
            self._normalise(hidden, residual, layer.norm, buffers.normed)
            hidden = self._mix(layer, buffers, images, length)
        self._normalise(hidden, residual, self.vim.norm_f.weight, buffers.normed)
        return buffers.normed.view(images, length, width)

    def _normalise(self, hidden: Tensor | None, residual: Tensor, weight: Tensor, out: Tensor) -> None:
        from model.backends.cpu.kernels import TOKENS

        rows, width = residual.shape
        self.norm(math.ceil(rows / TOKENS), rows, width, hidden, residual, weight, self.epsilon, out, None)

    def _mix(self, layer: LayerWeights, buffers: _Buffers, images: int, length: int) -> Tensor:
        """`Mixer.forward` from `buffers.normed` to `buffers.hidden`."""
        _product(buffers.normed, layer.in_proj, layer.in_proj_bias, buffers.projected)
        self._convolve(layer, buffers, images, length)
        for s, weight in enumerate(layer.x_proj):
            torch.mm(buffers.convolved[s], weight.t(), out=buffers.selected[s])
        self._scan(layer, buffers, images, length)
        _product(buffers.scanned, layer.out_proj, layer.out_proj_bias, buffers.hidden)
        return buffers.hidden

    def _convolve(self, layer: LayerWeights, buffers: _Buffers, images: int, length: int) -> None:
        from model.backends.cpu.kernels import TOKENS

        row, inner = buffers.projected.shape[1], self.config.d_inner
        sizes = (len(layer.x_proj), images, length, inner)
        jobs = images * math.ceil(length / TOKENS)
        self.conv(jobs, *sizes, buffers.projected, row, layer.conv_weight, layer.conv_bias, buffers.convolved, None)

    def _scan(self, layer: LayerWeights, buffers: _Buffers, images: int, length: int) -> None:
        directions, rank, inner = layer.dt_proj.shape
        shared = len(layer.x_proj) < directions  # v1: both directions scan the same inputs
        selected, row = buffers.selected, buffers.selected.shape[2]
        side = 0 if shared else selected[0].numel()
        u_side = 0 if shared else buffers.convolved[0].numel()
        B, C = selected[0, :, rank:], selected[0, :, rank + self.config.d_state :]
        gate = buffers.projected[:, inner:]
        self.scan(
            images * inner // WIDTH,
            *(directions, length, inner, buffers.convolved, u_side, selected, side, row, layer.dt_proj),
            *(layer.dt_bias, layer.A_log2e, B, side, row, C, side, row, layer.D),
            *(gate, 2 * inner, self.constant, buffers.scanned, None),
        )


def _gemm(narrow: bool) -> Gemm | None:
    """Return the BLAS function for a pass as one list of steps, or None if torch's BLAS cannot be called."""
    from model.backends.cpu.forward_pass import Gemm

    if narrow and (gemm := threads.bfloat16_gemm()) is not None:
        return Gemm(gemm, torch.bfloat16)
    return None if (gemm := threads.sgemm()) is None else Gemm(gemm, torch.float32)


@contextlib.contextmanager
def _bfloat16_matmul() -> Iterator[None]:
    """Let oneDNN multiply float32 tensors in bfloat16, if the CPU has such instructions."""
    products = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before, products.fp32_precision = products.fp32_precision, "bf16"
    try:
        yield
    finally:
        products.fp32_precision = before


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    if bias is None:
        torch.mm(rows, weight.t(), out=out)
    else:
        torch.addmm(bias, rows, weight.t(), out=out)
