"""`load` of the reference's own checkpoints, without a configuration, against the reference's results."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from model import Vim, VimConfig, load
from tests.golden import SHARED, needs_shared


def logits(vim: Vim, images: np.ndarray) -> np.ndarray:
    """Return the model's logits."""
    with torch.inference_mode():
        found: np.ndarray = vim(torch.from_numpy(images)).numpy()
    return found


@needs_shared
@pytest.mark.parametrize(("weights", "key"), [("model", "logits"), ("model_ema", "logits_ema")])
@pytest.mark.parametrize("name", ["base_v2_midcls", "bimamba_v1"])
def test_training_checkpoints_of_the_reference_agree(name: str, weights: str, key: str) -> None:
    """Both sets of weights of both golden checkpoints give the reference's logits without a configuration."""
    arrays = np.load(SHARED / "golden" / "train_ckpt" / f"{name}.npz")

    vim = load(SHARED / "golden" / "train_ckpt" / f"{name}.pth", weights=weights, device="cpu")

    np.testing.assert_allclose(logits(vim, arrays["input"]), arrays[key], rtol=0, atol=1e-4)


@needs_shared
def test_golden_state_dicts_load() -> None:
    """All 58 small cases load with the reference's constructor arguments and agree."""
    cases = json.loads((SHARED / "golden" / "small" / "index.json").read_text())["cases"]
    loaded = 0
    for name in cases.keys() - {"cls_pool_max", "bimamba_unknown", "slow_path_v2"}:
        config = VimConfig.from_reference(**cases[name]["kwargs"])

        vim = load(SHARED / "golden" / cases[name]["checkpoint"], config=config)

        assert vim.config == config
        assert sum(p.numel() for p in vim.parameters()) == cases[name]["n_params"]
        loaded += 1
    assert loaded == 58
