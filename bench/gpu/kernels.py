"""Each fused kernel alone, with the time that a model of the chip predicts; and the baseline's scan alone."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial

import torch

from bench.gpu import fused
from bench.gpu.cases import Plan, case, choice, need_baseline
from bench.gpu.entry import KERNELS, Entry, Values
from bench.gpu.timing import Clock

LENGTHS = (197, 256)  # the second fills its blocks
# Microseconds by a model of the H200, never measured: in_proj, project, scan, out_project. The scan of small and base
# at batch 1 is that of one piece of time; the others are the middle of the range that the issue model gives.
EXPECTED_US = {
    ("tiny", 1): (5, 6, 12, 8),
    ("tiny", 8): (6, 7, 28, 9),
    ("tiny", 64): (12, 15, 62, 15),
    ("tiny", 128): (22, 32, 125, 32),
    ("small", 1): (6, 8, 63, 12),
    ("small", 64): (27, 30, 122, 30),
    ("base", 1): (8, 20, 63, 42),
    ("base", 64): (92, 55, 250, 109),
}


def entries(plan: Plan) -> list[Entry]:
    """Return every kernel at every batch and width, the headline's batches first, then the scans alone."""
    few, many = plan.small_and_large
    batches = [many, few, *(images for images in plan.batches if images not in (few, many))]
    found = [
        Entry(
            KERNELS,
            f"{kernel}, {name}, batch {images}",
            partial(_kernel, plan, kernel, name, images),
            0.6,
            "triton",
            case(name, torch.float16),
        )
        for images in batches
        for name in plan.widths
        for kernel in fused.KERNELS
    ]
    return (
        found
        + [
            Entry(
                KERNELS,
                f"scan {scan} alone, tiny, batch {images}",
                partial(_scan, plan, scan, images),
                1,
                scan,
                case("tiny", torch.float16),
            )
            for scan in ("triton", "mamba_ssm")
            for images in plan.small_and_large
        ]
        + [_theirs(plan, length, images) for length in LENGTHS for images in plan.small_and_large]
    )


def in_graph(plan: Plan, work: Callable[[], object]) -> Values:
    """Time one launch of many in a graph, in microseconds."""
    accelerator = plan.accelerator()
    stream = accelerator.stream()

    def launch(times: int) -> None:
        for _ in range(times):
            work()

    with torch.inference_mode():
        accelerator.run(stream, lambda: launch(1))
        accelerator.wait_and_free()
        graph = accelerator.capture(stream, lambda: launch(plan.launches))
        values = _clock(plan).measure(lambda: accelerator.replay(stream, graph), stream)
    each = [round(1000 * ms / plan.launches, 2) for ms in (values["ms"], *values["quartiles_ms"])]
    return {"us": each[0], "quartiles_us": each[1:], "launches": plan.launches, "runs": values["runs"]}


def _clock(plan: Plan) -> Clock:
    return Clock(plan.device, 0, 2, 0.0) if plan.dry_run else Clock(plan.device, 2, 10, 0.1)


def _kernel(plan: Plan, kernel: str, name: str, images: int) -> Values:
    values = in_graph(plan, fused.layer(plan, name, images).launches()[kernel])
    return values | {"model_us": _expected(kernel, name, images)}


def _expected(kernel: str, name: str, images: int) -> float | None:
    row = EXPECTED_US.get((name, images))
    return dict(zip(fused.KERNELS[1:], row, strict=True)).get(kernel) if row else None


def _theirs(plan: Plan, length: int, images: int) -> Entry:
    """The baseline's kernel alone, with both directions as two groups of channels."""

    def run() -> Values:
        need_baseline(plan)
        fwd = importlib.import_module("selective_scan_cuda").fwd
        config = plan.config("tiny")
        E, N, tokens = 2 * config.d_inner, config.d_state, config.seq_len if plan.dry_run else length
        u, delta, A, B, C, D, bias = (
            torch.randn(shape, device=plan.device)
            for shape in ((images, E, tokens),) * 2 + ((E, N),) + ((images, 2, N, tokens),) * 2 + ((E,),) * 2
        )
        u, delta, B, C = (x.half() for x in (u, delta, B, C))
        rates = -torch.exp(A)
        return in_graph(plan, lambda: fwd(u, delta, rates, B, C, D, None, bias, True))

    of = case("tiny", torch.float16)
    return Entry(KERNELS, f"selective_scan_cuda alone, {length} tokens, batch {images}", run, 0.6, "mamba_ssm", of)


def _scan(plan: Plan, scan: str, images: int) -> Values:
    """The scan of `model.scan` in both directions, with the steps of the backend before and after its kernel."""
    config = plan.config("tiny")
    generator = torch.Generator(plan.device).manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=plan.device)

    per_token, E, N = (2, images, config.seq_len), config.d_inner, config.d_state
    u, delta, B, C = (normal(*per_token, width).half() for width in (E, E, N, N))
    A, D, z, bias = -torch.exp(normal(2, E, N)), normal(2, E), normal(*per_token[1:], E).half(), normal(2, E)
    function = choice(plan, scan).fn
    return in_graph(plan, lambda: function(u, delta, A, B, C, D, z, bias))
