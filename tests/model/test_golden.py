"""The model gives the reference's numbers.

A few cases are committed (`tests/data/golden_small.*`, made from the golden data of this project's `../shared`); all of
them run if `../shared` exists.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from model.config import VimConfig
from model.scan import choose, names_on
from model.vim import Vim
from tests.golden import SHARED, make_weights, needs_shared

LOGITS, FEATURES = 1e-4, 5e-5
DATA = Path(__file__).parents[1] / "data"
GOLDEN = SHARED / "golden"
COMMITTED: dict[str, dict[str, Any]] = json.loads((DATA / "golden_small.json").read_text())
NOT_COPIED = {"bimamba_unknown", "slow_path_v2"}  # refused; see test_config


def index(name: str) -> dict[str, Any]:
    """A golden index file; empty if ../shared is absent (the tests then skip)."""
    path = GOLDEN / name
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"cases": {"absent": {}}}
    return found


def build(kwargs: dict[str, Any], tensors: dict[str, torch.Tensor], scan: str) -> Vim:
    """A model with the reference's constructor arguments and weights."""
    vim = Vim(VimConfig.from_reference(**kwargs), choose(scan, torch.device("cpu")).fn).eval()
    vim.load_state_dict(tensors)
    return vim


def check(vim: Vim, images: np.ndarray, logits: np.ndarray, features: np.ndarray) -> None:
    """Assert that both outputs are within the published limits of a float32 implementation."""
    with torch.inference_mode():
        found = vim.forward_features(torch.from_numpy(images))
        found_logits = vim.forward_head(found)

    np.testing.assert_allclose(found.numpy(), features, rtol=0, atol=FEATURES)
    np.testing.assert_allclose(found_logits.numpy(), logits, rtol=0, atol=LOGITS)


@pytest.mark.parametrize("scan", names_on(torch.device("cpu")))
@pytest.mark.parametrize("name", COMMITTED)
def test_committed_cases_agree(name: str, scan: str) -> None:
    """Every option that shares the base model's weights gives the reference's features and logits, with every scan."""
    arrays = np.load(DATA / "golden_small.npz")
    vim = build(COMMITTED[name], load_file(DATA / "golden_small.safetensors"), scan)

    check(vim, arrays["input"], arrays[f"{name}.logits"], arrays[f"{name}.features"])


@needs_shared
@pytest.mark.parametrize("name", sorted(set(index("small/index.json")["cases"]) - NOT_COPIED))
def test_all_small_cases_agree(name: str) -> None:
    """All options of the reference's constructor agree, one at a time."""
    case = index("small/index.json")["cases"][name]
    arrays = np.load(GOLDEN / case["npz"])
    vim = build(case["kwargs"], torch.load(GOLDEN / case["checkpoint"], weights_only=True), "torch")
    if name == "cls_pool_max":  # quirk 1: the reference collapses the logits over the classes; here they stay
        assert vim(torch.from_numpy(arrays["input"])).shape == (3, 10)
        return

    check(vim, arrays["input"], arrays["logits"], arrays["features"])


@needs_shared
@pytest.mark.parametrize("name", sorted(index("full/index.json")["cases"]))
def test_full_size_models_agree(name: str) -> None:
    """The released configurations at 224 px agree, with generated weights."""
    manifest = json.loads((GOLDEN / "manifest.json").read_text())["models"]
    entry = next(model for model in manifest.values() if model["short"] == name)
    weights = make_weights()
    tensors = weights.make_state_dict(entry["state_dict"], weights.FULL_SEED)
    vim = build(entry["resolved_kwargs"], {key: torch.from_numpy(np.array(a)) for key, a in tensors.items()}, "torch")
    arrays = np.load(GOLDEN / "full" / f"{name}.npz")

    check(vim, weights.make_input(100, 2, 224, 224), arrays["logits"], arrays["features"])
