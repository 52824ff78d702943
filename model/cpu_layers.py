"""All layers of a Vim on a CPU: four kinds of matrix products by torch, everything between them by `model.kernels`.

A model in bfloat16 has its products computed in bfloat16 where the CPU can (AVX512-BF16, AMX) and summed in float32;
everything else is float32, as in a model in float32.

Every buffer is made once for a forward pass and used by all layers. Nothing is transposed or copied between the steps:
kernels read the two halves of the first projection, and the three parts of the second, where the products left them.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model.config import VimConfig
from model.vim import Vim

if TYPE_CHECKING:
    from collections.abc import Callable

    from model.mixer import Mixer

WIDTH = 16  # model.vectors.LANES
LOG2E = 1.4426950408889634


def unsupported(vim: Vim) -> str | None:
    """Why these layers do not run here, in a few words."""
    config, dtype = vim.config, vim.patch_embed.proj.weight.dtype
    reasons = {
        f"dtype is {str(dtype).removeprefix('torch.')}": dtype not in (torch.float32, torch.bfloat16),
        "norm is layer": config.norm == "layer",
        "positions are rotary": config.rope,
        "layers run in pairs": config.bidirectional_layers,
        f"embed_dim {config.embed_dim} is no multiple of {WIDTH}": config.embed_dim % WIDTH,
        f"d_inner {config.d_inner} is no multiple of {WIDTH}": config.d_inner % WIDTH,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def encoder(vim: Vim) -> Callable[[Tensor], Tensor]:
    """The function for `vim.encoder`."""
    return _Encoder(vim)


@dataclass(frozen=True, slots=True)
class _Layer:
    """One layer's weights as the kernels and products take them: float32; large ones are the module's own, if it is."""

    norm: Tensor  # (D)
    into: Tensor  # (D, 2 E)
    into_bias: Tensor | None  # (2 E)
    taps: Tensor  # (S, K, E)
    conv_bias: Tensor  # (S, E)
    select: tuple[Tensor, ...]  # of each convolved direction (E, R + 2 N)
    step: Tensor  # (S, R, E)
    step_bias: Tensor  # (S, E)
    rates: Tensor  # A / ln 2 (S, N, E)
    skip: Tensor  # (S, E)
    out: Tensor  # (E, D)
    out_bias: Tensor | None  # (D)
    gamma: Tensor | None  # (D)


def _prepared(norm: Tensor, mixer: Mixer) -> _Layer:
    if mixer.in_proj.weight.dtype != torch.float32:
        mixer = copy.deepcopy(mixer).float()
    weight, conv_bias = mixer._taps()
    steps = [dt.weight.t() for dt in mixer._both("dt_proj")]
    return _Layer(
        norm=norm,
        into=mixer.in_proj.weight.t(),
        into_bias=mixer.in_proj.bias,
        taps=weight.transpose(1, 2).contiguous(),
        conv_bias=weight.new_zeros(weight.shape[:2]) if conv_bias is None else conv_bias,
        select=tuple(x_proj.weight.t() for x_proj in mixer._both("x_proj")),
        step=torch.stack(steps * 2 if mixer.wiring == "v1" else steps),
        step_bias=mixer._delta_bias(),
        rates=(mixer._decay_rates().transpose(1, 2) * LOG2E).contiguous(),
        skip=mixer._stacked("D").contiguous(),
        out=mixer.out_proj.weight.t(),
        out_bias=mixer.out_proj.bias,
        gamma=getattr(mixer, "gamma", None),
    )


class _Buffers:
    """What the layers write, for a batch of images: M rows, one a token."""

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
        from model.kernels import conv_kernel, norm_kernel, scan_kernel

        self.vim, self.config = vim, vim.config
        self.layers = [_prepared(layer.norm.weight, layer.mixer) for layer in vim.layers]  # type: ignore[arg-type, union-attr]
        self.epsilon = torch.tensor([vim.config.norm_epsilon])
        halve = vim.config.bimamba == "v2" and vim.config.divide_out
        self.constant = torch.tensor([0.5 if halve else 1.0])
        self.narrow = vim.patch_embed.proj.weight.dtype == torch.bfloat16
        self.norm, self.conv, self.scan = norm_kernel(), conv_kernel(vim.config.d_conv), scan_kernel(vim.config.d_state)

    def __call__(self, tokens: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        if torch.is_grad_enabled() and tokens.requires_grad:
            return self.vim.encode(tokens)
        with _products_in_bfloat16() if self.narrow else contextlib.nullcontext():
            return self._run(tokens).to(tokens.dtype)

    def _run(self, tokens: Tensor) -> Tensor:
        images, length, width = tokens.shape
        residual = tokens.detach().to(torch.float32, copy=True).contiguous().view(-1, width)
        buffers = _Buffers(self.config, len(residual), len(self.layers[0].select))
        hidden: Tensor | None = None
        for layer in self.layers:
            self._normalise(hidden, residual, layer.norm, buffers.normed)
            hidden = self._mix(layer, buffers, images, length)
        self._normalise(hidden, residual, self.vim.norm_f.weight, buffers.normed)
        return buffers.normed.view(images, length, width)

    def _normalise(self, hidden: Tensor | None, residual: Tensor, weight: Tensor, out: Tensor) -> None:
        from model.kernels import TOKENS

        rows, width = residual.shape
        self.norm(math.ceil(rows / TOKENS), rows, width, hidden, residual, weight, self.epsilon, out)

    def _mix(self, layer: _Layer, buffers: _Buffers, images: int, length: int) -> Tensor:
        """`Mixer.forward` from `buffers.normed` to `buffers.hidden`."""
        _product(buffers.normed, layer.into, layer.into_bias, buffers.projected)
        self._convolve(layer, buffers, images, length)
        for s, weight in enumerate(layer.select):
            torch.mm(buffers.convolved[s], weight, out=buffers.selected[s])
        self._scan(layer, buffers, images, length)
        _product(buffers.scanned, layer.out, layer.out_bias, buffers.hidden)
        return buffers.hidden if layer.gamma is None else buffers.hidden.mul_(layer.gamma)

    def _convolve(self, layer: _Layer, buffers: _Buffers, images: int, length: int) -> None:
        from model.kernels import TOKENS

        row, inner = buffers.projected.shape[1], self.config.d_inner
        sizes = (len(layer.select), images, length, inner)
        jobs = images * math.ceil(length / TOKENS)
        self.conv(jobs, *sizes, buffers.projected, row, layer.taps, layer.conv_bias, buffers.convolved)

    def _scan(self, layer: _Layer, buffers: _Buffers, images: int, length: int) -> None:
        directions, rank, inner = layer.step.shape
        shared = len(layer.select) < directions  # v1: both directions scan the same inputs
        selected, row = buffers.selected, buffers.selected.shape[2]
        side = 0 if shared else selected[0].numel()
        u_side = 0 if shared else buffers.convolved[0].numel()
        B, C = selected[0, :, rank:], selected[0, :, rank + self.config.d_state :]
        gate = buffers.projected[:, inner:]
        self.scan(
            images * inner // WIDTH,
            *(directions, length, inner, rank, buffers.convolved, u_side, selected, side, row, layer.step),
            *(layer.step_bias, layer.rates, B, side, row, C, side, row, layer.skip),
            *(gate, 2 * inner, self.constant, buffers.scanned),
        )


@contextlib.contextmanager
def _products_in_bfloat16() -> Iterator[None]:
    """Of float32 tensors: oneDNN narrows them on the way into the multipliers, if the CPU has such; else no change."""
    products = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before, products.fp32_precision = products.fp32_precision, "bf16"
    try:
        yield
    finally:
        products.fp32_precision = before


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    if bias is None:
        torch.mm(rows, weight, out=out)
    else:
        torch.addmm(bias, rows, weight, out=out)
