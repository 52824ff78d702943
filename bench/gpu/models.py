"""Whole models: ours on each backend, the reference's wiring in float32 and under autocast, and DeiT-tiny."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from bench.deit import DeiTTiny
from bench.gpu.cases import TINY, Plan, case, need_baseline, random_model, runner, slots
from bench.gpu.entry import HEADLINE, MODELS, Entry, Values
from bench.gpu.reference import Reference
from bench.gpu.timing import Clock
from model.config import VimConfig
from model.runtime.pixel_model import PARTS

LARGE = (1248, 1248)
KINDS = ("autocast", "float32")


def headline(plan: Plan) -> list[Entry]:
    """Return tiny at the large batch and at one image: ours, DeiT-tiny compiled, the reference."""
    few, many = plan.small_and_large
    config = plan.config("tiny")
    ours = [_ours(plan, HEADLINE, "triton", TINY, config, images) for images in (many, few)]
    deit = [_deit(plan, HEADLINE, 224, images, compiled=True) for images in (many, few)]
    return ours + deit + [_theirs(plan, HEADLINE, kind, TINY, config, n) for kind in KINDS for n in (many, few)]


def entries(plan: Plan) -> list[Entry]:
    """Return the other widths, batches and sizes."""
    few, many = plan.small_and_large
    found: list[Entry] = []
    for name in [name for name in plan.widths if name != "tiny"]:
        for images in (many, few):
            found += _both(plan, f"{name} 224", plan.config(name), images)
    if plan.batches[-1] != many:
        found += _both(plan, TINY, plan.config("tiny"), plan.batches[-1])
    found += _both(plan, "tiny 1248", plan.config("tiny", image_size=LARGE), few)
    found += [_deit(plan, MODELS, size, few, compiled=False) for size in (224, LARGE[0])]
    found += [_ours(plan, MODELS, "mamba_ssm", TINY, plan.config("tiny"), images) for images in (many, few)]
    return found


def _both(plan: Plan, name: str, config: VimConfig, images: int) -> list[Entry]:
    ours = _ours(plan, MODELS, "triton", name, config, images)
    return [ours, _theirs(plan, MODELS, "autocast", name, config, images)]


def _ours(plan: Plan, part: str, scan: str, name: str, config: VimConfig, images: int) -> Entry:
    of = case(name.partition(" ")[0], torch.float16)
    run = partial(_time_ours, plan, scan, config, images)
    return Entry(part, f"ours {scan}, {name}, batch {images}", run, 4, scan, of)


def _time_ours(plan: Plan, scan: str, config: VimConfig, images: int) -> Values:
    """Time graph replays on random pixels, and the path from slots to rows on the host's clock."""
    clock = plan.clock()
    pixels = slots(2 * images, config.image_size[0])
    ours = runner(plan, random_model(config, plan.device), scan, torch.float16, pixels, images)
    values = clock.measure(lambda: ours.compute_again(images), ours.compute_stream)
    whole = Clock(torch.device("cpu"), clock.warm_ups, clock.least_runs, clock.enough_s / 2)
    round_trip = whole.measure(lambda: ours.collect(ours.submit(range(images, 2 * images), PARTS)))
    path = ours.vim.scan_choice.path if ours.vim.scan_choice else ""
    return _per_second(values, images) | {"with_copies_ms": round_trip["ms"], "path": path, "graphs": ours.graphs}


def _theirs(plan: Plan, part: str, kind: str, name: str, config: VimConfig, images: int) -> Entry:
    def run() -> Values:
        need_baseline(plan)
        reference = Reference(random_model(config, plan.device), autocast=kind == "autocast")
        batch = torch.randn(images, 3, *config.image_size, device=plan.device)
        return _per_second(plan.clock().measure(lambda: reference(batch)), images)

    return Entry(part, f"reference {kind}, {name}, batch {images}", run, 2, "reference", kind)


def _deit(plan: Plan, part: str, size: int, images: int, *, compiled: bool) -> Entry:
    def run() -> Values:
        side = 32 if plan.dry_run else size
        deit: Any = DeiTTiny(side).to(plan.device, torch.float16).eval().requires_grad_(False)
        batch = torch.randn(images, 3, side, side, device=plan.device, dtype=torch.float16)
        how: dict[str, Any] = {}
        if compiled:
            how = {"backend": "eager"} if plan.dry_run else {"mode": "reduce-overhead"}
            deit = torch.compile(deit, dynamic=False, **how)

        def forward() -> None:
            with torch.inference_mode():
                deit(batch)

        return _per_second(plan.clock().measure(forward), images) | {"compiled": how}

    name = f"deit-tiny{' compiled' * compiled}, {size}, batch {images}"
    return Entry(part, name, run, 25 if compiled else 2, "deit")


def _per_second(values: Values, images: int) -> Values:
    return values | {"images_per_s": round(1000 * images / values["ms"], 1)}
