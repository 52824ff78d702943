"""The narrowest dtype that agrees with float32 on this model is chosen, and the reason is kept."""

from __future__ import annotations

import pytest
import torch

from model.runtime.cuda import precision
from model.runtime.cuda.precision import choose_precision, compare, example
from model.vim import Vim
from tests.tiny import CONFIG, tiny_vim

SMALL = CONFIG.replace(image_size=(32, 32), depth=1)


def dtype_of(vim: Vim) -> torch.dtype:
    """Return the dtype of the weights."""
    return vim.patch_embed.proj.weight.dtype


def test_float16_is_taken_where_it_agrees() -> None:
    """float16 is chosen if it agrees; recurrence and norms stay float32, and the original model is unchanged."""
    vim = tiny_vim(SMALL)
    chosen = choose_precision(vim, "auto")

    assert torch.float16 == dtype_of(chosen.vim)
    assert torch.float32 == chosen.vim.layers[0].mixer.A_log.dtype  # type: ignore[union-attr]
    assert torch.float32 == dtype_of(vim)
    assert "float16 agrees with float32: least cosine " in chosen.why
    assert chosen.vim.scan_choice is not None


def test_bfloat16_is_taken_where_float16_overflows() -> None:
    """bfloat16, which has float32's range, is chosen if float16 overflows."""
    vim = tiny_vim(SMALL)
    vim.patch_embed.proj.weight.data *= 1e5
    chosen = choose_precision(vim, "auto")

    assert torch.bfloat16 == dtype_of(chosen.vim)
    assert "float16: gives values that are not finite" in chosen.why


def test_float32_stays_where_nothing_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 is kept if no narrower dtype agrees."""
    monkeypatch.setattr(precision, "COSINE", dict.fromkeys(precision.COSINE, 1.1))
    vim = tiny_vim(SMALL)
    chosen = choose_precision(vim, "auto")

    assert vim is chosen.vim
    assert "float16: cosine with float32 only" in chosen.why
    assert "bfloat16: cosine with float32 only" in chosen.why


def test_another_first_class_is_a_disagreement_unless_float32_ties() -> None:
    """Another top class is a disagreement, unless float32's logits differ by less than a hundredth of their range."""
    features = torch.ones(1, 4)
    exact = torch.tensor([[0.0, 9.0, 10.0]])

    assert compare([features, exact], [features, torch.tensor([[0.0, 10.0, 9.0]])], 0.99)[0] is not None
    close = torch.tensor([[0.0, 9.95, 10.0]])
    assert compare([features, close], [features, torch.tensor([[0.0, 10.0, 9.9]])], 0.99)[0] is None


def test_the_example_has_every_grain() -> None:
    """The example is seeded, and its images range from noise to a few large patches."""
    images = example(CONFIG)

    assert (precision.IMAGES, 3, 64, 64) == images.shape
    torch.testing.assert_close(images, example(CONFIG), rtol=0, atol=0)
    steps = (images[..., 1:] - images[..., :-1]).abs().mean((1, 2, 3))
    assert float(steps[0]) > 10 * float(steps[-1])
