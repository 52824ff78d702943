"""The reference's own results for generated weights, if a copy of the golden data was sent to the machine."""

from __future__ import annotations

import importlib.util
import json
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.gpu.cases import WIDTHS, Plan, case
from bench.gpu.entry import CHECK, Entry, Values
from model.config import VimConfig
from model.runtime.cuda.precision import in_precision
from model.scan import choose
from model.vim import Vim

LOGITS = 1e-3  # float32, TF32 off
COSINE = 0.9999  # float16


def entries(plan: Plan) -> list[Entry]:
    """Return float32 and float16 for each released model that the data has."""
    if plan.golden is None or plan.dry_run:
        return []
    manifest = json.loads((plan.golden / "manifest.json").read_text())["models"]
    present = json.loads((plan.golden / "full" / "index.json").read_text())["cases"]
    names = {width: name for name, width in WIDTHS.items()}
    return [
        Entry(
            CHECK,
            f"triton: golden {model['short']}, {dtype}",
            partial(_golden, plan, plan.golden, model["short"], dtype),
            4,
            "triton",
            case(names[model["resolved_kwargs"]["embed_dim"]], dtype),
        )
        for dtype in (torch.float16, torch.float32)
        for model in manifest.values()
        if model["short"] in present
    ]


@torch.inference_mode()
def _golden(plan: Plan, golden: Path, name: str, dtype: torch.dtype) -> Values:
    vim, images, expected = _load(golden, name, plan.device)
    logits = in_precision(vim, "triton", dtype)(images.to(dtype)).float()
    error = float((logits - expected).abs().max())
    cosine = float(F.cosine_similarity(logits.double(), expected.double(), dim=-1).min())
    same = bool((logits.argmax(-1) == expected.argmax(-1)).all())
    ok = error <= LOGITS if dtype == torch.float32 else cosine >= COSINE and same
    return {"max_abs": error, "cosine": cosine, "same_first_class": same, "ok": ok}


def _load(golden: Path, name: str, device: torch.device) -> tuple[Vim, Tensor, Tensor]:
    """Return a model with the generated weights, its images, and the reference's logits."""
    make = _make_weights(golden)
    manifest = json.loads((golden / "manifest.json").read_text())["models"]
    entry = next(model for model in manifest.values() if model["short"] == name)
    arrays = make.make_state_dict(entry["state_dict"], make.FULL_SEED)
    vim = Vim(VimConfig.from_reference(**entry["resolved_kwargs"]), choose("torch", device).fn).eval()
    vim.requires_grad_(False).load_state_dict({key: torch.from_numpy(np.array(array)) for key, array in arrays.items()})
    images = torch.from_numpy(make.make_input(100, 2, 224, 224))
    expected = torch.from_numpy(np.load(golden / "full" / f"{name}.npz")["logits"])
    return vim.to(device), images.to(device), expected.to(device)


def _make_weights(golden: Path) -> ModuleType:
    """Import the golden data's weight generator."""
    spec = importlib.util.spec_from_file_location("make_weights", golden / "make_weights.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
