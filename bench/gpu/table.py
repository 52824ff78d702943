"""Format a record as a Markdown table, with figures of the record only."""

from __future__ import annotations

import re
from typing import Any

BASELINE = "reference autocast"


def table(data: dict[str, Any]) -> str:
    """Return one line per model and batch: images per second of every variant, and ours relative to the baseline."""
    models: dict[str, dict[str, Any]] = data.get("models", {})
    if not models:
        return ""
    variants = list(dict.fromkeys(title.partition(", ")[0] for title in models))
    ours = [name for name in variants if name.startswith("ours")]
    columns = [name for name in variants if not name.startswith("deit")]
    lines = [_row(["model", *columns, *(f"{name[5:]} / {BASELINE}" for name in ours)])]
    lines.append(_row(["---"] * (1 + len(columns) + len(ours))))
    for case in dict.fromkeys(title.partition(", ")[2] for title in models if not title.startswith("deit")):
        cells = {name: models.get(f"{name}, {case}", {}) for name in columns}
        ratios = [_ratio(cells[name], cells.get(BASELINE, {})) for name in ours]
        lines.append(_row([case, *(_speed(cell) for cell in cells.values()), *ratios]))
    deit = {title: entry for title, entry in models.items() if title.startswith("deit")}
    lines += ["", *(f"{_words(title)}: {_speed(entry)}." for title, entry in deit.items())]
    about = data["about"]
    where = f"{about['device']}, torch {about['torch']}, triton {about['triton']}, {about['date']}"
    kind = "A dry run on a CPU, in miniature: says nothing about speed" if about["dry_run"] else "Images a second"
    return "\n".join([*lines, "", f"{kind}; {where}.", ""])


def _words(title: str) -> str:
    return re.sub(r"^deit-tiny (\d+)", r"DeiT-tiny with SDPA at \1 px", title)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _speed(entry: dict[str, Any]) -> str:
    if "out_of_memory" in entry:
        return "out of memory"
    return f"{entry['images_per_s']:,.0f}" if "images_per_s" in entry else "not measured"


def _ratio(entry: dict[str, Any], baseline: dict[str, Any]) -> str:
    if "ms" not in entry or "ms" not in baseline:
        return ""
    return f"{baseline['ms'] / entry['ms']:.2f}"
