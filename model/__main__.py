"""`python -m model inspect SRC`: what a file or directory of weights is, without running it.

Commands print to stdout, or one message to stderr and exit 1. Serving is `python -m service`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from model.errors import ModelError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = _parser().parse_args(argv)
    try:
        options.run(options)
    except ModelError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m model", description="Look at Vision Mamba weights.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    inspect = commands.add_parser("inspect", help="say what a file or directory of weights holds")
    inspect.add_argument("source", metavar="SRC", help="a directory, a .safetensors, or a .pth")
    inspect.add_argument("--weights", default="model", help="which weights of a training checkpoint (model, model_ema)")
    inspect.add_argument("--image-size", type=_size, metavar="N", help="pixels a side, or HxW: settles the stride")
    inspect.add_argument("--json", action="store_true", help="print JSON")
    inspect.set_defaults(run=_inspect)
    return parser


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    return int(height), int(width or height)


def _inspect(options: argparse.Namespace) -> None:
    report = describe(options.source, options.weights, options.image_size)
    print(json.dumps(report, indent=2) if options.json else _as_text(report))


def describe(source: str, weights: str = "model", image_size: tuple[int, int] | None = None) -> dict[str, Any]:
    """Everything known of a source before it runs, JSON-ready. Raises ModelError as `load`."""
    from model.fingerprint import BUFFERS
    from model.weights import read

    contents = read(source, weights=weights, image_size=image_size)
    checkpoint, labels = contents.checkpoint, contents.labels
    learned = [tensor for name, tensor in checkpoint.tensors.items() if name not in BUFFERS]
    return {
        "file": str(checkpoint.path),
        "format": checkpoint.format,
        "bytes": checkpoint.size,
        "top_level_keys": list(checkpoint.keys),
        "weights": " / ".join(checkpoint.unwrapped) or "the whole file",
        "tensors": len(learned),
        "parameters": sum(tensor.numel() for tensor in learned),
        "fingerprint": contents.fingerprint,
        "config_from": contents.config_from,
        "config": contents.config.to_dict(),
        "assumptions": list(contents.assumptions),
        "preprocess": contents.preprocess.to_dict(),
        "labels": {"source": labels.source, "count": len(labels), "first": list(labels.names[:3])},
    }


def _as_text(report: dict[str, Any]) -> str:
    labels, keys = report["labels"], report["top_level_keys"]
    names = f": {', '.join(labels['first'])}, …" if labels["first"] else ""
    lines = [
        f"file         {report['file']}",
        f"format       {report['format']}, {report['bytes'] / 1e6:,.1f} MB",
        f"weights      {report['weights']}" + (f" (the file's keys: {', '.join(keys)})" if keys else ""),
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


if __name__ == "__main__":
    sys.exit(main())
