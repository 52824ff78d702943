"""The narrowest dtype that agrees with float32 on this model is chosen, and the reason is kept."""

from __future__ import annotations

import pytest
import torch

from model.preprocessing.recipe import Preprocess
from model.runtime.cuda import precision
from model.runtime.cuda.precision import choose_precision, compare
from model.vim import Vim
from tests.tiny import CONFIG, tiny_vim

SMALL = CONFIG.replace(image_size=(32, 32), depth=1)


def model(depth: int = 1) -> Vim:
    """Return a small model with a recipe."""
    vim = tiny_vim(SMALL.replace(depth=depth))
    vim.preprocess = Preprocess(32)
    return vim


def dtype_of(vim: Vim) -> torch.dtype:
    """Return the dtype of the weights."""
    return vim.patch_embed.proj.weight.dtype


def test_float16_is_taken_where_it_agrees() -> None:
    """float16 is chosen if it agrees; recurrence and norms stay float32, and the original model is unchanged."""
    vim = model()
    chosen = choose_precision(vim, "auto")

    assert torch.float16 == dtype_of(chosen.vim)
    assert torch.float32 == chosen.vim.layers[0].mixer.A_log.dtype  # type: ignore[union-attr]
    assert torch.float32 == dtype_of(vim)
    assert "float16 agrees with float32: least cosine " in chosen.why
    assert chosen.vim.scan_choice is not None


def test_bfloat16_is_taken_where_float16_overflows() -> None:
    """bfloat16, which has float32's range, is chosen if float16 overflows."""
    vim = model()
    vim.patch_embed.proj.weight.data *= 1e5
    chosen = choose_precision(vim, "auto")

    assert torch.bfloat16 == dtype_of(chosen.vim)
    assert "float16: gives values that are not finite" in chosen.why
    assert chosen.exact is None


@pytest.mark.parametrize(("scale", "dtype"), [(1, torch.float16), (300, torch.bfloat16)])
def test_float16_needs_headroom(scale: float, dtype: torch.dtype) -> None:
    """float16 is not used if float32's activations come within a factor of eight of its range, even if it agrees."""
    vim = model()
    vim.get_parameter("layers.0.mixer.in_proj.weight").data *= scale
    chosen = choose_precision(vim, "torch")

    assert dtype == dtype_of(chosen.vim)
    assert ("float16: float32's activations reach " in chosen.why) == (dtype == torch.bfloat16)
    assert "float16's range over the largest activation, by layer: " in chosen.margins


def test_the_float32_model_stays_fused_and_is_kept_beside_float16() -> None:
    """Copying the model for a candidate does not change the model that is copied."""
    chosen = choose_precision(model(), "numba")

    assert chosen.exact is not None
    assert torch.float32 == dtype_of(chosen.exact)
    assert (True, "fused") == (chosen.exact.encoder is not None, chosen.exact.scan_choice.path)  # type: ignore[union-attr]


def test_float32_stays_where_nothing_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 is kept if no narrower dtype agrees."""
    monkeypatch.setattr(precision, "COSINE", dict.fromkeys(precision.COSINE, 1.1))
    vim = model()
    chosen = choose_precision(vim, "auto")

    assert vim is chosen.vim
    assert vim.encoder is not None
    assert "float16: cosine with float32 only" in chosen.why
    assert "bfloat16: cosine with float32 only" in chosen.why


def test_another_first_class_is_a_disagreement_unless_float32_ties() -> None:
    """Another top class is a disagreement, unless float32's logits differ by less than a hundredth of their range."""
    features = torch.ones(1, 4)
    exact = torch.tensor([[0.0, 9.0, 10.0]])

    assert compare([features, exact], [features, torch.tensor([[0.0, 10.0, 9.0]])], 0.99)[0] is not None
    close = torch.tensor([[0.0, 9.95, 10.0]])
    assert compare([features, close], [features, torch.tensor([[0.0, 10.0, 9.9]])], 0.99)[0] is None
