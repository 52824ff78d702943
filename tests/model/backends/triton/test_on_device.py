"""The kernels on a GPU are right at the released widths, the same in chunks, and deterministic."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch

from model.backends import fusion
from model.backends.selftest import tolerance
from model.backends.triton.weights import LayerWeights
from model.config import VimConfig
from model.scan import choose
from tests.model.backends.triton.problems import config, error, low_rank, normal, prepared

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = torch.device("cuda")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("width", [192, 384, 768])
def test_fused_layers_agree_with_float64(width: int, dtype: torch.dtype) -> None:
    """Two fused layers agree with float64 within the tolerance of the self-test."""
    found = fusion.largest_error(choose("triton", CUDA), VimConfig(embed_dim=width), CUDA, dtype)

    assert fusion.SLACK * tolerance(CUDA, dtype) >= found


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("width", [192, 384, 768])
def test_every_variant_of_the_launches_agrees_with_float64(
    width: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles of few and of many rows, cuBLAS's out_proj, and time in pieces are within the self-test's tolerance."""
    from model.backends.triton import encoder, launch

    whole = encoder.encoder
    for plan in launch.variants(width, fusion.TOKENS, dtype, launch.Device.of(CUDA)):
        monkeypatch.setattr(encoder, "encoder", functools.partial(whole, plan=plan))
        found = fusion.largest_error(choose("triton", CUDA), VimConfig(embed_dim=width), CUDA, dtype)
        assert fusion.SLACK * tolerance(CUDA, dtype) >= found, plan


def test_the_scan_is_the_same_in_chunks_and_every_time() -> None:
    """Repeated scans are identical; a difference would be a missing barrier, which the interpreter cannot show."""
    from model.backends.triton import launch

    shape = config(192)
    here, _ = prepared(shape, torch.float16)
    layer = LayerWeights(*(getattr(here, field.name).to(CUDA) for field in dataclasses.fields(here)))
    xz = normal(8, 730, 2 * shape.d_inner, dtype=torch.float16).to(CUDA)
    dbc = low_rank(layer, shape, 8, 730).to(CUDA)
    first = launch.scan(xz, dbc, layer, 1)

    for _ in range(20):
        torch.testing.assert_close(launch.scan(xz, dbc, layer, 1), first, rtol=0, atol=0)
    assert error(launch.scan(xz, dbc, layer, 11), first.double()) <= tolerance(CUDA, torch.float16)
