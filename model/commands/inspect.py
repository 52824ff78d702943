"""What a source of weights contains: format, configuration, assumptions, preprocessing and labels."""

from __future__ import annotations

import json
from typing import Any

from model.loading.fingerprint import BUFFERS
from model.loading.load import read


def describe(source: str, **reading: Any) -> dict[str, Any]:
    """Return what is known of a source without running it, JSON-ready.

    Arguments and errors are those of `model.loading.load.read`.
    """
    contents = read(source, **reading)
    checkpoint, labels = contents.checkpoint, contents.labels
    learned = [tensor for name, tensor in checkpoint.tensors.items() if name not in BUFFERS]
    return {
        "file": str(checkpoint.path),
        "format": checkpoint.format,
        "bytes": checkpoint.size,
        "top_level_keys": list(checkpoint.keys),
        "weights": " / ".join(checkpoint.unwrapped) or "the whole file",
        "sets_of_weights": list(checkpoint.sets),
        "notes": list(checkpoint.notes),
        "tensors": len(learned),
        "parameters": sum(tensor.numel() for tensor in learned),
        "fingerprint": contents.fingerprint,
        "config_from": contents.config_from,
        "config": contents.config.to_dict(),
        "assumptions": list(contents.assumptions),
        "preprocess": contents.preprocess.to_dict(),
        "labels": {"source": labels.source, "count": len(labels), "first": list(labels.names[:3])},
    }


def as_text(report: dict[str, Any]) -> str:
    """Format the report of `describe` for a terminal."""
    labels, keys = report["labels"], report["top_level_keys"]
    names = f": {', '.join(labels['first'])}, …" if labels["first"] else ""
    several = report["sets_of_weights"][1:]
    sets = [f"sets         {', '.join(report['sets_of_weights'])} (--weights)"] if several else []
    lines = [
        f"file         {report['file']}",
        f"format       {report['format']}, {report['bytes'] / 1e6:,.1f} MB",
        f"weights      {report['weights']}" + (f" (the file's keys: {', '.join(keys)})" if keys else ""),
        *sets,
        *(f"note         {note}" for note in report["notes"]),
        f"parameters   {report['parameters']:,} in {report['tensors']} tensors",
        f"fingerprint  {report['fingerprint']}",
        f"labels       {labels['count']} ({labels['source']}){names}",
        f"config       {report['config_from']}",
        *_table(report["config"]),
        "preprocess",
        *_table(report["preprocess"]),
    ]
    if report["assumptions"]:
        lines += ["assumed, since no tensor shows it:", *(f"  {line}" for line in report["assumptions"])]
    return "\n".join(lines)


def _table(values: dict[str, Any]) -> list[str]:
    width = max(map(len, values))
    return [f"  {name:{width}}  {json.dumps(value)}" for name, value in values.items()]
