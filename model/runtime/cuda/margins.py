"""How large the activations that fused layers store become, which decides whether float16 has enough range.

Fused layers store in_proj's output xz, each direction's scan output y, and their gated sum, in the dtype of the
weights. The rest is float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from model.mixer import Mixer
from model.runtime.pixel_model import PixelModel
from model.vim import Vim

GATE = 40.0  # silu(40) is 40 in float32, so that a scan with this gate gives 40 y


@dataclass(slots=True)
class Peaks:
    """The largest absolute values in one layer over all images."""

    xz: float = 0.0
    y: float = 0.0
    gated: float = 0.0

    @property
    def largest(self) -> float:
        """The largest of the three."""
        return max(self.xz, self.y, self.gated)


@torch.inference_mode()
def peaks(vim: Vim, pixels: Tensor) -> list[Peaks]:
    """Run a float32 model on pixels (n, H, W, 3) uint8, one image at a time, composed; returns a value for each layer.

    Values that are not finite count as infinite.
    """
    encoder, vim.encoder = vim.encoder, None
    found = [Peaks() for _ in vim.layers]
    try:
        with ExitStack() as stack:
            for layer, kept in zip(vim.layers, found, strict=True):
                stack.enter_context(_watched(layer.mixer, kept))  # type: ignore[arg-type]
            model = PixelModel(vim, narrow=True)
            for image in pixels:
                model.tokens(image[None])
    finally:
        vim.encoder = encoder
    return found


def as_text(found: list[Peaks]) -> str:
    """Return float16's largest value divided by the largest activation of each layer, for `/info`."""
    limit = torch.finfo(torch.float16).max
    factors = [limit / layer.largest if layer.largest else float("inf") for layer in found]
    if not factors:
        return ""
    least = factors.index(min(factors))
    by_layer = ", ".join(f"{factor:.3g}" for factor in factors)
    summary = f"least {factors[least]:.3g} in layer {least}"
    return f"float16's range over the largest activation, by layer: {by_layer}; {summary}"


@contextmanager
def _watched(mixer: Mixer, kept: Peaks) -> Iterator[None]:
    conv, scan = mixer.conv, mixer.scan
    mixer.conv, mixer.scan = partial(_conv, conv, kept), partial(_scan, scan, kept)
    try:
        yield
    finally:
        mixer.conv, mixer.scan = conv, scan


def _conv(conv: Callable[..., Tensor], kept: Peaks, x: Tensor, *rest: Any) -> Tensor:
    kept.xz = max(kept.xz, _largest(x))
    return conv(x, *rest)


def _scan(scan: Callable[..., Tensor], kept: Peaks, *inputs: Tensor) -> Tensor:
    u, delta, A, B, C, D, z, bias = inputs
    kept.xz = max(kept.xz, _largest(z))
    for s in range(len(u)):
        one = slice(s, s + 1)
        y = scan(u[one], delta[one], A[one], B[one], C[one], D[one], torch.full_like(z, GATE), bias[one])
        kept.y = max(kept.y, _largest(y) / GATE)
    gated = scan(*inputs)
    kept.gated = max(kept.gated, _largest(gated))
    return gated


def _largest(x: Tensor) -> float:
    return float(x.abs().nan_to_num(nan=float("inf"), posinf=float("inf")).max())
