"""Cases of VideoMamba and Mamba-Reg, computed by their own code; copied from the golden data of `../shared`.

All cases share the tensors of the layers; a tensor in which a case differs has the name of the case before its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from model import Vim, VimConfig
from model.backends import reference

DATA = Path(__file__).parents[1] / "data"
CASES: dict[str, dict[str, Any]] = json.loads((DATA / "golden_relatives.json").read_text())
LOGITS, FEATURES = 1e-4, 5e-5  # limits of a float32 implementation


def config_of(name: str) -> VimConfig:
    """The configuration, from the arguments of the family's own constructor."""
    return VimConfig.from_reference(family=CASES[name]["family"], **CASES[name]["kwargs"])


def tensors(name: str) -> dict[str, Tensor]:
    """The tensors of a case, as its file has them."""
    stored = load_file(DATA / "golden_relatives.safetensors")
    with torch.device("meta"):
        names = Vim(config_of(name), reference.scan).state_dict()
    return {key: stored[f"{name}/{key}" if f"{name}/{key}" in stored else key] for key in names}


def built(name: str) -> Vim:
    """The model of a case, without loading it from a file."""
    vim = Vim(config_of(name), reference.scan).requires_grad_(False).eval()
    vim.load_state_dict(tensors(name))
    return vim


@torch.inference_mode()
def check(vim: Vim, name: str, images: int = 3) -> None:
    """Assert that features and logits of the first images agree; there are three."""
    arrays = np.load(DATA / "golden_relatives.npz")
    features = vim.forward_features(torch.from_numpy(arrays["input"][:images]))
    logits = vim.forward_head(features)

    np.testing.assert_allclose(features.numpy(), arrays[f"{name}.features"][:images], rtol=0, atol=FEATURES)
    np.testing.assert_allclose(logits.numpy(), arrays[f"{name}.logits"][:images], rtol=0, atol=LOGITS)
