"""The operators give the reference's numbers one by one: scan, convolution, add + norm, rotary embedding.

Position embeddings are tested in `tests/model/loading/test_pos_embed.py`.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from model.config import VimConfig
from model.conv import causal_conv
from model.rope import Rope
from model.scan import choose, names_on
from model.vim import Norm
from tests.golden import SHARED, needs_shared

RELATIVE = 1e-5
FILE = SHARED / "golden" / "ops.npz"
pytestmark = needs_shared


def op(name: str) -> Tensor:
    """Return one array of the golden file."""
    return torch.from_numpy(np.load(FILE)[name])


def check(found: Tensor, expected: Tensor) -> None:
    """Compare within 1e-5 of the largest value."""
    assert found.shape == expected.shape
    assert float((found - expected).abs().max() / expected.abs().max()) <= RELATIVE


@pytest.mark.parametrize("scan", names_on(torch.device("cpu")))
@pytest.mark.parametrize("case", ["plain", "wide", "one", "long"])
def test_selective_scan(case: str, scan: str) -> None:
    """One direction with gate agrees, at 1 to 730 tokens; `wide` has softplus inputs from -12 to 30."""

    def token_major(name: str) -> Tensor:
        return op(f"scan_{case}_{name}").transpose(1, 2)

    u, delta, B, C = (token_major(name)[None] for name in ("u", "delta", "B", "C"))
    A, D, bias = (op(f"scan_{case}_{name}")[None] for name in ("A", "D", "delta_bias"))
    found = choose(scan, torch.device("cpu")).fn(u, delta, A, B, C, D, token_major("z"), bias)

    check(found, token_major("out_z"))


@pytest.mark.parametrize("width", [2, 3, 4])
def test_causal_convolution_with_silu(width: int) -> None:
    """The forward direction agrees, and so does the backward direction on reversed tokens."""
    weight, bias = op(f"conv{width}_weight"), op(f"conv{width}_bias")
    x, expected = (op(f"conv{width}_{name}").transpose(1, 2) for name in ("x", "silu_out"))

    forward, _ = causal_conv(x, torch.stack((weight, weight)), torch.stack((bias, bias)))
    _, backward = causal_conv(x.flip(1), torch.stack((weight, weight)), torch.stack((bias, bias)))
    check(forward, expected)
    check(backward.flip(1), expected)


@pytest.mark.parametrize(("kind", "expected"), [("rms", "rms_out"), ("layer", "ln_out")])
def test_add_and_norm(kind: str, expected: str) -> None:
    """RMSNorm and LayerNorm of the sum of hidden state and residual agree."""
    norm = Norm(VimConfig(embed_dim=40, norm=kind), 40)  # type: ignore[arg-type]
    norm.weight.data = op("norm_weight")
    if norm.bias is not None:
        norm.bias.data = op("norm_bias")

    check(norm(op("norm_x") + op("norm_residual")).detach(), op(expected))


@pytest.mark.parametrize(("half", "grid"), [(8, 4), (20, 4), (96, 14)])
def test_rotary_tables(half: int, grid: int) -> None:
    """Cosines and sines over the patch grid agree."""
    rope = Rope(VimConfig(image_size=(16 * grid, 16 * grid), embed_dim=2 * half, rope=True))

    check(rope.freqs_cos, op(f"rope_d{half}_ft{grid}_cos"))
    check(rope.freqs_sin, op(f"rope_d{half}_ft{grid}_sin"))


@pytest.mark.parametrize("half", [8, 20])
def test_rotary_embedding(half: int) -> None:
    """Quirk 6: an odd length leaves token 0 unrotated, an even one rotates all."""
    rope = Rope(VimConfig(image_size=(64, 64), embed_dim=2 * half, rope=True))
    x = op(f"rope_d{half}_ft4_x")

    check(rope(x), op(f"rope_d{half}_ft4_y_odd_len"))
    even = op(f"rope_d{half}_ft4_y_even_len")
    check(rope(x[:, 1:]), even)
