"""VideoMamba and Mamba-Reg give the numbers of their own code.

`tests/model/loading/test_load_golden.py` has more cases, for which `../shared` is needed.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model import Vim, load
from model.backends import reference
from model.scan import names_on
from tests.model.golden_relatives import CASES, built, check, config_of, tensors


@pytest.mark.parametrize("scan", names_on(torch.device("cpu")))
@pytest.mark.parametrize("name", CASES)
def test_a_bare_file_gives_the_numbers_of_its_own_code(name: str, scan: str, tmp_path: Path) -> None:
    """A bare file gives the numbers of its own code with every scan, fused layers included."""
    torch.save(tensors(name), tmp_path / "weights.pth")

    vim = load(tmp_path / "weights.pth", family=CASES[name]["family"], scan=scan, device="cpu")

    assert config_of(name) == vim.config
    assert (scan == "numba") == (vim.encoder is not None)
    check(vim, name)


def test_spread_class_tokens_need_no_family(tmp_path: Path) -> None:
    """The tensors of Mamba-Reg show what it is; it is evaluated with crop ratio 1.0."""
    torch.save(tensors("reg_4_reduce2"), tmp_path / "weights.pth")

    vim = load(tmp_path / "weights.pth", device="cpu")

    assert config_of("reg_4_reduce2") == vim.config
    assert 1.0 == vim.preprocess.crop_ratio
    check(vim, "reg_4_reduce2")


@torch.inference_mode()
def test_the_mean_is_that_of_the_patch_tokens() -> None:
    """The mean is over the patch tokens, without spread class tokens."""
    vim = Vim(config_of("reg_12_small_grid"), reference.scan)
    tokens = torch.full((1, 28, 48), 2.0)
    tokens[:, list(vim.config.class_slots)] = 100.0

    torch.testing.assert_close(vim.mean_of_patches(tokens), torch.full((1, 48), 2.0))


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_neck_runs_in_every_dtype(dtype: torch.dtype) -> None:
    """Features have the dtype of the weights and stay close to those in float32."""
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = built("reg_4_reduce2").forward_features(images)

    found = built("reg_4_reduce2").cast(dtype).forward_features(images.to(dtype))

    assert dtype == found.dtype
    assert torch.nn.functional.cosine_similarity(found.float(), expected).min() > 0.999
