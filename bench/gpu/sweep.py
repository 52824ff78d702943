"""The fastest tile of each matrix kernel, of `launch.candidates`, and the fastest number of pieces of the scan.

The table of the best tiles is written to tiles.json beside the results, to be read and copied by hand.
"""

from __future__ import annotations

import dataclasses
import json
from functools import partial

import torch

from bench.gpu import fused
from bench.gpu.cases import Plan, case, short
from bench.gpu.entry import SWEEP, Entry, Values, reason_of
from bench.gpu.kernels import in_graph
from model.backends.triton.tiles import Tile, row_class

TABLE = "tiles.json"
SWEPT = ("project", "out_project", "scan")
DTYPE = torch.float16


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
            case(name, DTYPE),
        )
        for images in (many, few)
        for name in plan.widths
        for kernel in SWEPT
    ]


def _sweep(plan: Plan, kernel: str, name: str, images: int) -> Values:
    from model.backends.triton import launch

    layer = fused.layer(plan, name, images)
    width, rows = layer.tokens.shape[-1], layer.tokens.shape[0] * layer.tokens.shape[1]
    values: Values = {"width": width, "rows": rows, "now": in_graph(plan, layer.launches()[kernel])["us"]}
    tiles = launch.candidates(kernel, width, rows, DTYPE, launch.Device.of(plan.device))
    tried = [_timed(plan, layer, kernel, tile) for tile in tiles]
    good = sorted((one for one in tried if "us" in one), key=lambda one: float(one["us"]))
    values |= {"tried": len(tried), "failed": [one for one in tried if "us" not in one], "fastest": good[:5]}
    return values | {"ok": bool(good)}


def _timed(plan: Plan, layer: fused.Layer, kernel: str, tile: Tile) -> Values:
    """Time one tile. A tile that cannot be built or does not fit is dropped, and the reason is recorded."""
    found: Values = {"tile": dataclasses.asdict(tile)}
    try:
        return found | {"us": float(in_graph(plan, layer.launches(tile)[kernel])["us"])}
    except Exception as error:
        if plan.device.type == "cuda":
            torch.cuda.synchronize(plan.device)  # raises if the device is lost; all later ones would fail
        return found | {"reason": reason_of(error)[:300]}


def write_table(plan: Plan, recorded: dict[str, Values]) -> None:
    """Write the fastest tiles in the format of the package's own table, if any entry has a result."""
    best: dict[tuple[str, int, int | None], Values] = {}
    for name, entry in recorded.items():
        if entry.get("fastest"):
            key = name.partition(",")[0], entry["width"], row_class(entry["rows"])
            best.setdefault(key, entry["fastest"][0]["tile"])  # the large batch comes first
    if best:
        tiles = [
            {"kernel": kernel, "width": width, "dtype": short(DTYPE), "rows": rows, **tile}
            for (kernel, width, rows), tile in best.items()
        ]
        (plan.results / TABLE).write_text(json.dumps({"tiles": tiles}, indent=1) + "\n", encoding="utf-8")
