"""The fastest tile of each matrix kernel, of `launch.candidates`, and the fastest number of pieces of the scan.

The table of the best goes into tiles.json beside the results, for a person to read and to copy.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from bench.gpu import fused
from bench.gpu.cases import Plan, case
from bench.gpu.entry import SWEEP, Entry, SkippedError, Values, reason_of
from bench.gpu.kernels import in_graph

TABLE = "tiles.json"
SCAN, PIECES = "scan", (1, 2, 4, 7, 13)  # most pieces of the sequence; the scan has no tile to choose
Choice = tuple[Values, dict[str, Any]]  # what is recorded, and what replaces names of `launch`


def entries(plan: Plan) -> list[Entry]:
    """Return one entry for each kernel, width and batch; the headline's come first."""
    few, many = plan.small_and_large
    return [
        Entry(
            SWEEP,
            f"{kernel}, {name}, batch {images}",
            partial(_sweep, plan, kernel, name, images),
            2,
            "triton",
            case(name, torch.float16),
        )
        for images in (many, few)
        for name in plan.widths
        for kernel in (*fused.CHOOSERS, SCAN)
    ]


def _sweep(plan: Plan, kernel: str, name: str, images: int) -> Values:
    layer = fused.layer(plan, name, images)
    width, rows = layer.tokens.shape[-1], layer.tokens.shape[0] * layer.tokens.shape[1]
    choices = _pieces(plan) if kernel == SCAN else _tiles(kernel, width, rows, plan.device)
    values: Values = {"width": width, "rows": rows, "now": in_graph(plan, layer.launches()[kernel])["us"]}
    tried = [_timed(plan, layer, kernel, label, changes) for label, changes in choices]
    good = sorted((one for one in tried if "us" in one), key=lambda one: float(one["us"]))
    values |= {"tried": len(tried), "failed": [one for one in tried if "us" not in one], "fastest": good[:5]}
    return values | {"ok": bool(good)}


def _tiles(kernel: str, width: int, rows: int, device: torch.device) -> list[Choice]:
    from model.backends.triton import launch

    candidates = getattr(launch, "candidates", None)
    if candidates is None:
        raise SkippedError("launch has no candidates")
    tiles = candidates(kernel, width, rows, torch.float16, launch.Device.of(device))
    chooser = fused.CHOOSERS[kernel]
    return [({"tile": dataclasses.asdict(tile)}, {chooser: _always(tile)}) for tile in tiles]


def _pieces(plan: Plan) -> list[Choice]:
    return [({"pieces": pieces}, {"chunks": _always(pieces)}) for pieces in PIECES[: 2 if plan.dry_run else None]]


def _always(value: object) -> Callable[..., object]:
    return lambda *_, **__: value


def _timed(plan: Plan, layer: fused.Layer, kernel: str, label: Values, changes: dict[str, Any]) -> Values:
    """Time one choice. One that cannot be built or does not fit is none any more, and says why."""
    try:
        with fused.launched_with(**changes):
            return label | {"us": in_graph(plan, layer.launches()[kernel])["us"]}
    except Exception as error:
        if plan.device.type == "cuda":
            torch.cuda.synchronize(plan.device)  # raises where the device is lost, for all later ones
        return label | {"reason": reason_of(error)[:300]}


def write_table(plan: Plan, recorded: dict[str, Values]) -> None:
    """Write the fastest tiles of those entries that have one, if any has."""
    best = [
        {"kernel": name.partition(",")[0], "width": entry["width"], "rows": entry["rows"], "dtype": "float16"}
        | entry["fastest"][0]
        for name, entry in recorded.items()
        if entry.get("fastest")
    ]
    if best:
        text = json.dumps({"measured": best}, indent=1) + "\n"
        (plan.results / TABLE).write_text(text, encoding="utf-8")
