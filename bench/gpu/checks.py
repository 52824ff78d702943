"""Checks that the results are right on this device, each against float64 or bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from bench.gpu import fused, golden
from bench.gpu.cases import Plan, case, choice, need_baseline, random_model, runner, short, slots
from bench.gpu.entry import CHECK, Entry, Values
from bench.gpu.reference import Reference
from model.backends import reference
from model.backends.fusion import SLACK
from model.backends.selftest import TOLERANCE, example_inputs, relative_error, tolerance
from model.runtime.cuda.runner import CudaRunner
from model.runtime.pixel_model import PARTS

COSINE = 0.9999  # autocast
COMPANY = {torch.float16: 1e-2, torch.float32: 1e-5}  # of the largest value: an image alone and in a full batch
FEW = 3
TWO_PIECES = 17  # tokens; a piece has 16
# The plans of `launch.variants`, which together run every tile and every way through the fused layers.
WAYS = ("few rows", "most pieces", "many rows, two pieces", "out_proj by cuBLAS")


def entries(plan: Plan) -> list[Entry]:
    """Return all checks, those of the headline's case first, those that wait for the baseline last."""
    gold = golden.entries(plan)
    found: list[Entry] = []
    for dtype in COMPANY:
        for name in plan.widths:
            found += _of_fused_layers(plan, name, dtype)
            found += [_repeats(plan, name)] if dtype == torch.float16 else []
            found += [entry for entry in gold if entry.case == case(name, dtype)]
            if name == "tiny":
                title = f"triton: graph, padding, company, tiny {short(dtype)}"
                found.append(_check(title, "triton", dtype, _batches, plan))
    return found + _of_the_baseline(plan)


def _check(name: str, backend: str, dtype: torch.dtype, run: Callable[..., Values], plan: Plan) -> Entry:
    return Entry(CHECK, name, partial(run, plan, backend, dtype), 5, backend, case("tiny", dtype))


def _of_fused_layers(plan: Plan, name: str, dtype: torch.dtype) -> list[Entry]:
    of = case(name, dtype)
    small, large = FEW, plan.small_and_large[1]
    ways: list[tuple[str, int, int | None]] = [(way, small, index) for index, way in enumerate(WAYS)]
    ways.append((f"batch of {large}", large, None))
    return [
        Entry(
            CHECK, f"triton: fused layers, {of}, {way}", partial(_fused, plan, name, dtype, n, index), 1, "triton", of
        )
        for way, n, index in ways
    ]


def _fused(plan: Plan, name: str, dtype: torch.dtype, images: int, variant: int | None) -> Values:
    length = TWO_PIECES if plan.dry_run and variant else 0
    error = fused.largest_error(plan, name, dtype, 1 if plan.dry_run else images, length, variant)
    return {"relative": error, "ok": error <= tolerance(plan.device, dtype)}


def _repeats(plan: Plan, name: str) -> Entry:
    @torch.inference_mode()
    def run() -> Values:
        _, encode, tokens = fused.encoder(plan, name, torch.float16, plan.small_and_large[1])
        first = encode(tokens)
        same = sum(bool(torch.equal(encode(tokens), first)) for _ in range(plan.repeats))
        return {"runs": plan.repeats, "the_same": same, "ok": same == plan.repeats}

    of = case(name, torch.float16)
    return Entry(CHECK, f"triton: the same bits every time, {of}", run, 1, "triton", of)


def _batches(plan: Plan, scan: str, dtype: torch.dtype) -> Values:
    """The graph equals the kernels bit for bit, padding changes nothing, and the batch size changes little."""
    largest = 2 if plan.dry_run else 8
    config = plan.config("tiny")
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
        "path": ours.vim.scan_choice.path if ours.vim.scan_choice else "",
        "ok": same_bits and padding and company <= COMPANY[dtype],
    }


def _rows(ours: CudaRunner, indices: list[int]) -> dict[str, np.ndarray]:
    rows = ours.collect(ours.submit(indices, PARTS))
    return {part: getattr(rows, part) for part in PARTS}


def _of_the_baseline(plan: Plan) -> list[Entry]:
    scans = [
        Entry(CHECK, f"mamba_ssm: scan, {of}", partial(_scan, plan, name, torch.float16), 3, "mamba_ssm", of)
        for name in plan.widths
        for of in (case(name, torch.float16),)
    ]
    wirings = [
        Entry(CHECK, f"reference {kind}: logits", partial(_wiring, plan, kind), 4, "reference", kind)
        for kind in ("float32", "autocast")
    ]
    name = f"mamba_ssm: graph, padding, company, {case('tiny', torch.float16)}"
    return [*wirings, *scans, _check(name, "mamba_ssm", torch.float16, _batches, plan)]


@torch.inference_mode()
def _wiring(plan: Plan, kind: str) -> Values:
    """The baseline's logits against plain torch in float64."""
    need_baseline(plan)
    config = plan.config("tiny")
    vim = random_model(config, plan.device)
    images = torch.randn(2, 3, *config.image_size, generator=torch.Generator().manual_seed(1)).to(plan.device)
    found = Reference(vim, autocast=kind == "autocast")(images).double()
    expected = fused.exact(plan, vim)(images.double())
    error = float((found - expected).abs().max() / expected.abs().max())
    cosine = float(F.cosine_similarity(found, expected, dim=-1).min())
    ok = error <= tolerance(plan.device, torch.float32) * SLACK if kind == "float32" else cosine >= COSINE
    return {"relative": error, "cosine": cosine, "ok": ok}


def _scan(plan: Plan, name: str, dtype: torch.dtype) -> Values:
    scan = choice(plan, "mamba_ssm").fn
    inputs = [x.to(plan.device) for x in example_inputs(plan.config(name), dtype)]
    error = relative_error(scan(*inputs), reference.scan(*(x.double() for x in inputs)).cpu())
    return {"relative": error, "ok": error <= TOLERANCE[dtype]}
