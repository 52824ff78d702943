"""Format a record as Markdown; all figures come from the record."""

from __future__ import annotations

from typing import Any

from bench.gpu.entry import HEADLINE, KERNELS, MODELS, SERVICE

BASELINE = "reference autocast"
Data = dict[str, Any]


def table(data: Data) -> str:
    """Return the tables of models, kernels and the service, without empty ones, and where they were measured."""
    parts = [_models(data.get(HEADLINE, {}) | data.get(MODELS, {})), _kernels(data.get(KERNELS, {}))]
    parts.append(_service(data.get(SERVICE, {})))
    found = [part for part in parts if part]
    if not found or "about" not in data:  # the machine is unknown if no process has started
        return ""
    return "\n\n".join([*found, _where(data["about"])]) + "\n"


def _models(models: Data) -> str:
    """One line per model and batch: images per second of every variant, and ours relative to the baseline."""
    if not models:
        return ""
    titles = [title for title in models if not title.startswith("deit")]
    columns = list(dict.fromkeys(title.partition(", ")[0] for title in titles))
    ours = [name for name in columns if name.startswith("ours")]
    lines = [_row(["images/s", *columns, *(f"{name[5:]} / {BASELINE}" for name in ours)])]
    lines.append(_row(["---"] * (1 + len(columns) + len(ours))))
    for case in dict.fromkeys(title.partition(", ")[2] for title in titles):
        cells = {name: models.get(f"{name}, {case}", {}) for name in columns}
        ratios = [_ratio(cells[name], cells.get(BASELINE, {})) for name in ours]
        lines.append(_row([case, *(_speed(cell) for cell in cells.values()), *ratios]))
    lines.append("")
    lines += [f"{title}: {_speed(models[title])} images/s." for title in models if title.startswith("deit")]
    return "\n".join(lines)


def _kernels(kernels: Data) -> str:
    """One line per width and batch: microseconds of every fused kernel, with the model's in brackets."""
    titles = [title.split(", ", 1) for title in kernels if " alone" not in title]
    if not titles:
        return ""
    names = list(dict.fromkeys(name for name, _ in titles))
    lines = [_row(["µs, by the model", *names]), _row(["---"] * (1 + len(names)))]
    for case in dict.fromkeys(case for _, case in titles):
        cells = [_microseconds(kernels.get(f"{name}, {case}", {})) for name in names]
        lines.append(_row([case, *cells]))
    return "\n".join(lines)


def _service(service: Data) -> str:
    lines = []
    for name, entry in service.items():
        if "images_per_s" not in entry:
            lines.append(f"Service, {name}: {_words(entry)}.")
            continue
        busy = entry["device_busy_percent"]
        lines.append(
            f"Service, {name}: {_speed(entry)} images/s, p99 {entry['p99_ms']} ms, {entry['cpu_ms_per_image']} ms of "
            f"CPU an image, device busy {'unknown' if busy is None else f'{busy} %'}."
        )
    return "\n".join(lines)


def _where(about: Data) -> str:
    where = f"{about['device']}, torch {about['torch']}, triton {about['triton']}, {about['date']}"
    return f"A dry run on a CPU, in miniature: says nothing about speed; {where}." if about["dry_run"] else f"{where}."


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _speed(entry: Data) -> str:
    return f"{entry['images_per_s']:,.0f}" if "images_per_s" in entry else _words(entry)


def _microseconds(entry: Data) -> str:
    if "us" not in entry:
        return _words(entry)
    return f"{entry['us']:.1f}" + (f" ({entry['model_us']:g})" if entry.get("model_us") else "")


def _words(entry: Data) -> str:
    return str(entry.get("status", "not measured")).replace("_", " ")


def _ratio(entry: Data, baseline: Data) -> str:
    if "ms" not in entry or "ms" not in baseline:
        return ""
    return f"{baseline['ms'] / entry['ms']:.2f}"
