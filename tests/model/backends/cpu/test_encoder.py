"""The fused layers on a CPU equal the composed layers, for every supported wiring."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from model.backends.cpu import encoder as cpu_encoder
from model.backends.cpu import threads as cpu_threads
from model.backends.cpu.encoder import unsupported
from model.backends.fusion import fuse
from model.scan import choose
from model.vim import Vim
from tests.tiny import CONFIG, tiny_vim

CPU = torch.device("cpu")


def images(count: int = 2) -> Tensor:
    """Return seeded images for the tiny model."""
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def fused(vim: Vim) -> Vim:
    """Fuse the layers of a model and return it."""
    vim.use_scan(choose("numba", CPU))
    fuse(vim)
    assert vim.encoder is not None
    return vim


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"bimamba": "v1"},
        {"bimamba": "none"},
        {"divide_out": False},
        {"layer_scale": True},
        {"projection_bias": True},
        {"conv_bias": False},
        {"flip": True},
        {"class_token": "double"},
        {"class_token": "none", "pool": "mean"},
        {"depth": 1},
        {"d_state": 5, "d_conv": 3},
        {"embed_dim": 48, "dt_rank": 7},
        {"dt_rank": 1},
        {"dt_rank": 12},
    ],
    ids=str,
)
def test_equals_the_composed_layers(changes: dict[str, Any]) -> None:
    """All tokens of the fused layers equal those of the composed layers, up to float32's rounding."""
    vim = tiny_vim(CONFIG.replace(**changes))
    vim.use_scan(choose("torch", CPU))
    expected = vim.forward_tokens(images())

    torch.testing.assert_close(fused(vim).forward_tokens(images()), expected, rtol=2e-5, atol=2e-5)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """torch.set_num_threads; the previous number is restored after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("images_", [1, 3, 4, 9])
def test_images_apart_and_together_are_the_same(threads: Callable[[int], None], count: int, images_: int) -> None:
    """Any number of threads gives the same tokens for any number of images."""
    vim = tiny_vim()
    vim.use_scan(choose("torch", CPU))
    expected = vim.forward_tokens(images(images_))
    threads(count)

    torch.testing.assert_close(fused(vim).forward_tokens(images(images_)), expected, rtol=2e-5, atol=2e-5)


def test_passes_at_the_same_time_do_not_meet() -> None:
    """Concurrent passes of one model in several threads give the results of separate passes."""
    vim = fused(tiny_vim())
    batches = [(1 + i) * images(1 + i % 3) for i in range(8)]
    expected = [vim.forward_tokens(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(vim.forward_tokens, batches))

    for ours, alone in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, alone, rtol=0, atol=0)


@pytest.mark.parametrize("changes", [{}, {"bimamba": "v1"}, {"projection_bias": True, "layer_scale": True}], ids=str)
def test_without_a_blas_that_can_be_called_python_goes_from_step_to_step(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """Where torch's BLAS cannot be called, as on ARM, the steps run from Python with the same result."""
    monkeypatch.setattr(cpu_threads, "sgemm", lambda: None)
    vim = tiny_vim(CONFIG.replace(**changes))
    vim.use_scan(choose("torch", CPU))
    expected = vim.forward_tokens(images())

    torch.testing.assert_close(fused(vim).forward_tokens(images()), expected, rtol=2e-5, atol=2e-5)


def test_an_image_does_not_see_its_company() -> None:
    """An image's tokens are the same alone and in a batch of seven."""
    vim = fused(tiny_vim())
    together = vim.forward_tokens(images(7))

    torch.testing.assert_close(vim.forward_tokens(images(7)[3:4]), together[3:4], rtol=1e-5, atol=1e-5)


def test_one_pass_does_not_write_into_the_result_of_another() -> None:
    """A pass changes neither the result of another pass nor its own input."""
    vim = fused(tiny_vim())
    assert vim.encoder is not None
    tokens = vim.embed(images())
    given = tokens.clone()
    first = vim.encoder(tokens)
    kept = first.clone()
    vim.encoder(2 * tokens)

    torch.testing.assert_close(first, kept, rtol=0, atol=0)
    torch.testing.assert_close(tokens, given, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"norm": "layer"}, "norm is layer"),
        ({"rope": True}, "positions are rotary"),
        ({"bidirectional_layers": True, "bimamba": "none"}, "layers run in pairs"),
        ({"embed_dim": 40}, "embed_dim 40 is not a multiple of 16"),
    ],
)
def test_what_is_not_done_is_said(changes: dict[str, Any], reason: str) -> None:
    """`unsupported` returns the reason, which `/info` shows."""
    assert reason == unsupported(tiny_vim(CONFIG.replace(**changes)))


def test_other_precisions_are_composed() -> None:
    """float16 is not supported by the fused layers."""
    assert "dtype is float16" == unsupported(tiny_vim().cast(torch.float16))


def _by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_threads, "sgemm", lambda: None)
    monkeypatch.setattr(cpu_threads, "bfloat16_gemm", lambda: None)


def _without_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_threads, "bfloat16_gemm", lambda: None)


def _by_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    if cpu_threads.bfloat16_gemm() is None:
        pytest.skip("this CPU has no AMX, or torch no BLAS of Intel's")


@pytest.mark.parametrize("way", [_by_amx, _without_amx, _by_torch])
def test_bfloat16_is_for_the_products_alone(
    monkeypatch: pytest.MonkeyPatch, way: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """Features of a bfloat16 model agree with float32's on every kind of CPU.

    Products of float32 tensors outside the encoder stay float32.
    """
    way(monkeypatch)
    products = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = products.fp32_precision
    expected = tiny_vim().forward_features(images())
    vim = fused(tiny_vim().cast(torch.bfloat16))
    found = vim.forward_features(images().bfloat16())

    assert torch.bfloat16 == found.dtype
    assert torch.cosine_similarity(found.double(), expected.double(), dim=-1).min() > 0.999
    assert before == products.fp32_precision


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"bimamba": "v1"},
        {"bimamba": "none"},
        {"layer_scale": True, "projection_bias": True},
        {"d_state": 5, "d_conv": 3},
        {"embed_dim": 48, "dt_rank": 7},
    ],
    ids=str,
)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_bfloat16_in_one_list_of_steps_is_as_near_to_float32_as_its_weights(
    monkeypatch: pytest.MonkeyPatch, threads: Callable[[int], None], changes: dict[str, Any], count: int
) -> None:
    """Rounding the factors of products to bfloat16 moves no token by more than 2 percent.

    The comparison is with float32 products of the same rounded weights.
    """
    _by_amx(monkeypatch)
    threads(count)
    vim = tiny_vim(CONFIG.replace(**changes)).cast(torch.bfloat16)
    tokens = vim.embed(images(3).bfloat16())
    found = cpu_encoder.encoder(vim)(tokens).float()
    _without_amx(monkeypatch)
    expected = cpu_encoder.encoder(vim)(tokens).float()

    assert ((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max() < 0.02
    assert not torch.equal(found, expected)


def test_gradients_are_left_to_the_composed_layers() -> None:
    """A fused model has gradients, because the composed layers run when they are required."""
    vim = fused(tiny_vim()).requires_grad_(True)

    assert vim.forward_tokens(images()).requires_grad
