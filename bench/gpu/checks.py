"""Checks that the results are right on this device, before anything is timed. Each entry says whether it is `ok`."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.gpu.cases import Plan, random_model, runner, slots
from bench.gpu.record import Entry, Record
from bench.gpu.reference import Reference
from model.backends import mamba_ssm
from model.backends.selftest import TOLERANCE, example_inputs
from model.config import VimConfig
from model.runtime.cuda.precision import in_precision
from model.runtime.cuda.runner import CudaRunner
from model.runtime.pixel_model import PARTS
from model.scan import choose
from model.vim import Vim

LOGITS = 1e-3  # float32 on the device, TF32 off
COSINE = 0.9999  # float16
COMPANY = {torch.float32: 1e-5, torch.float16: 1e-2}  # of the largest value: alone against in a full batch


def run(plan: Plan, record: Record, golden: Path | None) -> None:
    """Run all checks that are not in the record yet."""
    name, config = next(iter(plan.configs.items()))
    for scan in plan.scans:
        checks: dict[str, Callable[[], Entry]] = {
            f"{scan}: float32 logits, {name}, against the reference's wiring": partial(_wiring, plan, scan, config)
        }
        for dtype in COMPANY:
            checks[f"{scan}: {dtype}, {name}: graph, padding, company"] = partial(_batches, plan, scan, config, dtype)
        for short in _golden_names(golden):
            checks[f"{scan}: golden {short}"] = partial(_golden, plan, scan, golden, short)
        if scan != "mamba_ssm" and "mamba_ssm" in plan.scans:
            for dtype in (*COMPANY, torch.bfloat16):
                title = f"{scan}: scan in {dtype} against mamba_ssm's, {name}"
                checks[title] = partial(_scans, plan, scan, config, dtype)
        for title, check in checks.items():
            if not record.has("check", title):
                record.check_time()
                record.put("check", title, check())


def failed(record: Record) -> list[str]:
    """Return the checks that failed."""
    return [name for name, entry in record.data.get("check", {}).items() if not entry["ok"]]


def _wiring(plan: Plan, scan: str, config: VimConfig) -> Entry:
    """Ours and the baseline compute the same, so their times can be compared."""
    size = config.image_size
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1)).to(plan.device)
    expected = Reference(random_model(config, plan.device), autocast=False)(images)
    found = _logits(in_precision(random_model(config, plan.device), scan, torch.float32), images)
    error = float((found - expected).abs().max())
    return {"max_abs": error, "ok": error <= LOGITS}


def _golden_names(golden: Path | None) -> list[str]:
    if golden is None:
        return []
    return sorted(json.loads((golden / "full" / "index.json").read_text())["cases"])


def _golden(plan: Plan, scan: str, golden: Path | None, short: str) -> Entry:
    """Compare with the reference's numbers for its generated weights: float32 logits, float16 cosine and top class."""
    assert golden is not None
    make = _make_weights(golden)
    manifest = json.loads((golden / "manifest.json").read_text())["models"]
    entry = next(model for model in manifest.values() if model["short"] == short)
    arrays = make.make_state_dict(entry["state_dict"], make.FULL_SEED)
    tensors = {key: torch.from_numpy(np.array(array)) for key, array in arrays.items()}
    config = VimConfig.from_reference(**entry["resolved_kwargs"])
    images = torch.from_numpy(make.make_input(100, 2, 224, 224)).to(plan.device)
    expected = torch.from_numpy(np.load(golden / "full" / f"{short}.npz")["logits"]).to(plan.device)

    def model() -> Vim:
        vim = Vim(config, choose("torch", plan.device).fn).eval().requires_grad_(False)
        vim.load_state_dict(tensors)
        return vim.to(plan.device)

    exact = _logits(in_precision(model(), scan, torch.float32), images)
    narrow = _logits(in_precision(model(), scan, torch.float16), images)
    error = float((exact - expected).abs().max())
    cosine = float(F.cosine_similarity(narrow.double(), expected.double(), dim=-1).min())
    same = bool((narrow.argmax(-1) == expected.argmax(-1)).all())
    ok = error <= LOGITS and cosine >= COSINE and same
    return {"float32_max_abs": error, "float16_cosine": cosine, "float16_same_first_class": same, "ok": ok}


def _batches(plan: Plan, scan: str, config: VimConfig, dtype: torch.dtype) -> Entry:
    """The graph equals the kernels bit for bit, padding changes nothing, and the batch size changes little."""
    largest = 4 if plan.dry_run else 8
    pixels = slots(2 * largest, config.image_size[0])
    ours = runner(plan, random_model(config, plan.device), scan, dtype, pixels, largest)
    few = list(range(largest - 1))
    together = _rows(ours, list(range(largest)))
    graph, _ = _rows(ours, few), _rows(ours, list(range(largest, 2 * largest)))
    after_others = _rows(ours, few)
    ours.drop_graphs()
    eager = _rows(ours, few)
    alone = [_rows(ours, [slot]) for slot in few]
    largest_value = {part: float(np.abs(together[part]).max()) for part in PARTS}
    company = max(
        float(np.abs(one[part][0] - together[part][slot]).max()) / largest_value[part]
        for slot, one in enumerate(alone)
        for part in PARTS
    )
    same_bits = all(np.array_equal(graph[part], eager[part]) for part in PARTS)
    padding = all(np.array_equal(graph[part], after_others[part]) for part in PARTS)
    return {
        "graph_equals_eager": same_bits,
        "padding_changes_nothing": padding,
        "company": company,
        "graphs": ours.graphs,
        "pixels": ours.page_lock,
        "ok": same_bits and padding and company <= COMPANY[dtype],
    }


def _scans(plan: Plan, scan: str, config: VimConfig, dtype: torch.dtype) -> Entry:
    """Compare our kernel with mamba-ssm's, at the model's own widths."""
    inputs = [x.to(plan.device) for x in example_inputs(config, dtype)]
    expected = mamba_ssm.scan(*inputs).double()
    found = choose(scan, plan.device).fn(*inputs).double()
    error = float((found - expected).abs().max() / expected.abs().max())
    return {"relative": error, "ok": error <= 2 * max(TOLERANCE[dtype], 1e-4)}


def _rows(ours: CudaRunner, indices: list[int]) -> dict[str, np.ndarray]:
    rows = ours.collect(ours.submit(indices, PARTS))
    return {part: getattr(rows, part) for part in PARTS}


@torch.inference_mode()
def _logits(vim: Vim, images: Tensor) -> Tensor:
    logits: Tensor = vim(images.to(vim.patch_embed.proj.weight.dtype))
    return logits.float()


def _make_weights(golden: Path) -> ModuleType:
    """Import the golden data's weight generator."""
    spec = importlib.util.spec_from_file_location("make_weights", golden / "make_weights.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
