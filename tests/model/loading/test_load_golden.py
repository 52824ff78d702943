"""`load` of the reference's own checkpoints, without a configuration, against the reference's results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from model import Vim, VimConfig, load
from model.scan import names_on
from tests.golden import SHARED, make_weights, needs_shared

RELATIVES = SHARED / "golden" / "relatives"
FAMILIES = {"videomamba": "videomamba", "mambareg": "mamba-reg"}  # folder -> family


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


def relatives(kind: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Cases of the golden data of related models by folder and name; a stand-in where ../shared is absent."""
    paths = [RELATIVES / folder / "index.json" for folder in FAMILIES]
    indexes = {path.parent.name: json.loads(path.read_text()) for path in paths if path.is_file()}
    found = {(folder, name): case for folder, index in indexes.items() for name, case in index[kind].items()}
    return found or {("absent", "absent"): {}}


def check(vim: Vim, images: np.ndarray, arrays: Mapping[str, np.ndarray]) -> None:
    """Assert that features and logits are within the published limits of a float32 implementation."""
    with torch.inference_mode():
        features = vim.forward_features(torch.from_numpy(images))
        logits = vim.forward_head(features)

    np.testing.assert_allclose(features.numpy(), arrays["features"], rtol=0, atol=5e-5)
    np.testing.assert_allclose(logits.numpy(), arrays["logits"], rtol=0, atol=1e-4)


@needs_shared
@pytest.mark.parametrize("scan", names_on(torch.device("cpu")))
@pytest.mark.parametrize(("folder", "name"), relatives("small"))
def test_files_of_relatives_give_their_numbers(folder: str, name: str, scan: str) -> None:
    """A bare file, loaded with its family, gives the numbers of the family's own code."""
    case, arrays = relatives("small")[folder, name], np.load(RELATIVES / folder / f"{name}.npz")

    vim = load(RELATIVES / folder / f"{name}.pth", family=FAMILIES[folder], scan=scan, device="cpu")

    assert VimConfig.from_reference(family=FAMILIES[folder], **case["kwargs"]) == vim.config  # type: ignore[arg-type]
    check(vim, arrays["input"], arrays)


@needs_shared
@pytest.mark.parametrize(("folder", "name"), relatives("full"))
def test_full_size_relatives_agree(folder: str, name: str, tmp_path: Path) -> None:
    """Published configurations agree, with generated weights and the default scan."""
    case, weights = relatives("full")[folder, name], make_weights()
    tensors = weights.make_state_dict(case["keys"], weights.FULL_SEED)
    path = tmp_path / "weights.safetensors"
    save_file({key: torch.from_numpy(np.array(values)) for key, values in tensors.items()}, path)
    size = case["kwargs"]["img_size"]

    vim = load(path, family=FAMILIES[folder], device="cpu")

    assert (size, size) == vim.config.image_size
    assert vim.encoder is not None
    check(vim, weights.make_input(100, 1, size, size), np.load(RELATIVES / folder / f"{name}.npz"))
