"""A backend may replace the convolution, or all layers at once; unsupported models are composed, with the reason."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor

from model import scan
from model.backends import fusion, torch_scan
from model.conv import causal_conv
from model.scan import ScanChoice, choose
from model.vim import EncoderFn, Vim
from tests.tiny import CONFIG, tiny_vim

CPU = torch.device("cpu")


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A backend called `doubling`: torch's scan, twice the convolution, and fused layers that negate their input."""
    module = ModuleType("doubling")
    module.scan, module.unavailable = torch_scan.scan, torch_scan.unavailable  # type: ignore[attr-defined]
    module.causal_conv = lambda *arguments: 2 * causal_conv(*arguments)  # type: ignore[attr-defined]
    module.unsupported = lambda vim: None if vim.config.norm == "rms" else "norm is layer"  # type: ignore[attr-defined]
    module.encoder = _negation  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "doubling", module)
    monkeypatch.setitem(scan.BACKENDS, "doubling", "doubling")
    return module


def _negation(vim: Vim) -> EncoderFn:
    return lambda tokens: -tokens


def images() -> Tensor:
    """Return two seeded images for the tiny model."""
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_a_backend_brings_its_convolution(backend: ModuleType) -> None:
    """A backend's convolution is used if it has one, else torch's."""
    assert backend.causal_conv is choose("doubling", CPU).conv
    assert causal_conv is choose("torch", CPU).conv

    vim = tiny_vim()
    before = vim(images())
    vim.use_scan(choose("doubling", CPU))
    assert not torch.allclose(before, vim(images()))


def test_all_layers_run_as_one_where_the_backend_can(backend: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fused function receives the tokens before the first layer; choosing another scan removes it."""
    monkeypatch.setitem(fusion.ENCODERS, "doubling", "doubling")
    vim = tiny_vim()
    vim.use_scan(choose("doubling", CPU))
    fusion.fuse(vim)

    torch.testing.assert_close(vim.forward_tokens(images()), -vim.embed(images()), rtol=0, atol=0)
    assert vim.scan_choice is not None
    assert "fused" == vim.scan_choice.path
    vim.use_scan(choose("torch", CPU))
    assert vim.encoder is None


def test_what_the_backend_does_not_support_is_composed_and_says_why(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`path` quotes the reason that the backend gives."""
    monkeypatch.setitem(fusion.ENCODERS, "doubling", "doubling")
    vim = tiny_vim(CONFIG.replace(norm="layer"))
    vim.use_scan(choose("doubling", CPU))
    fusion.fuse(vim)

    assert vim.encoder is None
    assert vim.scan_choice is not None
    assert "composed: norm is layer" == vim.scan_choice.path


def test_a_backend_without_fused_layers_is_composed() -> None:
    """A model on a backend without fused layers, such as `torch`, is composed, and `path` says so."""
    vim = tiny_vim()
    vim.use_scan(ScanChoice("torch", torch_scan.scan, "selected by name"))
    fusion.fuse(vim)

    assert vim.encoder is None
    assert vim.scan_choice is not None
    assert "composed: scan torch has no fused layers" == vim.scan_choice.path
