"""Write a checkpoint as large as a released one: weights, EMA and AdamW's moments, as vim/main.py saves them.

python -m tests.model.full_size vim_base vim_base.pth
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.golden import SHARED, make_weights


def write(short: str, path: Path) -> dict[str, Any]:
    """Write the checkpoint of a manifest's model (`vim_tiny`, ...) and return the manifest's entry."""
    models = json.loads((SHARED / "golden" / "manifest.json").read_text())["models"]
    name, entry = next((name, entry) for name, entry in models.items() if entry["short"] == short)
    make = make_weights()
    arrays = make.make_state_dict([(key, shape) for key, shape in entry["state_dict"]], make.FULL_SEED)
    weights = {key: torch.from_numpy(array) for key, array in arrays.items()}
    torch.save(_training(name, weights), path)
    found: dict[str, Any] = entry
    return found


def _training(name: str, weights: dict[str, Tensor]) -> dict[str, Any]:
    moments = {
        i: {"step": 1, "exp_avg": torch.zeros_like(w), "exp_avg_sq": torch.zeros_like(w)}
        for i, w in enumerate(weights.values())
    }
    return {
        "model": weights,
        "optimizer": {"state": moments, "param_groups": [{"lr": 1e-3, "params": list(moments)}]},
        "lr_scheduler": {},
        "epoch": 299,
        "model_ema": {key: 0.5 * weight for key, weight in weights.items()},
        "scaler": "none",
        "args": argparse.Namespace(model=name, input_size=224),
    }


if __name__ == "__main__":
    write(sys.argv[1], Path(sys.argv[2]))
