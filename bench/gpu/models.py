"""Whole models: ours on each backend, the reference's wiring in float32 and under autocast, and DeiT-tiny with SDPA."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from functools import partial

import torch

from bench.deit import DeiTTiny
from bench.gpu.cases import Plan, random_model, runner, slots
from bench.gpu.record import Entry, Record
from bench.gpu.reference import Reference
from bench.gpu.timing import Clock
from model.config import VimConfig
from model.runtime.pixel_model import PARTS


def run(plan: Plan, record: Record, clock: Clock) -> None:
    """Measure every combination that is not in the record yet; those of the same batch size follow one another."""
    for title, measure in _all(plan, clock):
        if record.has("models", title):
            continue
        record.check_time()
        try:
            entry = measure()
        except torch.OutOfMemoryError as error:
            entry = {"out_of_memory": str(error).splitlines()[0]}
        record.put("models", title, entry)
        gc.collect()
        if plan.device.type == "cuda":
            torch.cuda.empty_cache()


def _all(plan: Plan, clock: Clock) -> Iterator[tuple[str, Callable[[], Entry]]]:
    for images in plan.batches:
        for name, config in plan.configs.items():
            of = f"{name}, batch {images}"
            for scan in plan.scans:
                yield f"ours {scan}, {of}", partial(_ours, plan, clock, scan, config, images)
            for kind in ("float32", "autocast"):
                yield f"reference {kind}, {of}", partial(_theirs, plan, clock, kind, config, images)
        for size in plan.deit_sizes:
            yield f"deit-tiny {size}, batch {images}", partial(_deit, plan, clock, size, images)


def _ours(plan: Plan, clock: Clock, scan: str, config: VimConfig, images: int) -> Entry:
    """Time graph replays on random pixels, and the path from slots to rows on the host's clock."""
    pixels = slots(2 * images, config.image_size[0])
    ours = runner(plan, random_model(config, plan.device), scan, torch.float16, pixels, images)
    entry = clock.measure(lambda: ours.compute_again(images), ours.compute_stream)
    whole = Clock(torch.device("cpu"), clock.least_runs, clock.enough_s / 2)
    round_trip = whole.measure(lambda: ours.collect(ours.submit(range(images, 2 * images), PARTS)))
    path = ours.vim.scan_choice.path if ours.vim.scan_choice else ""
    return _per_second(entry, images) | {"with_copies_ms": round_trip["ms"], "path": path, "graphs": ours.graphs}


def _theirs(plan: Plan, clock: Clock, kind: str, config: VimConfig, images: int) -> Entry:
    reference = Reference(random_model(config, plan.device), autocast=kind == "autocast")
    batch = torch.randn(images, 3, *config.image_size, device=plan.device)
    return _per_second(clock.measure(lambda: reference(batch)), images)


def _deit(plan: Plan, clock: Clock, size: int, images: int) -> Entry:
    deit = DeiTTiny(size).to(plan.device, torch.float16).eval().requires_grad_(False)
    batch = torch.randn(images, 3, size, size, device=plan.device, dtype=torch.float16)

    def forward() -> None:
        with torch.inference_mode():
            deit(batch)

    return _per_second(clock.measure(forward), images)


def _per_second(entry: Entry, images: int) -> Entry:
    return entry | {"images_per_s": round(1000 * images / entry["ms"], 1)} if "ms" in entry else entry
