"""`python -m model inspect | convert | evaluate`: show weights, convert them to a directory, measure their accuracy.

Commands print to stdout and progress to stderr. On failure they print one message to stderr and exit with status 1. To
serve a model, run `python -m service`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from model.errors import ModelError
from model.preprocessing.recipe import Crop

INTERRUPTED = 130  # the shell's status of a process that Ctrl-C ended
CACHE = "~/.cache/vim-server"  # the service's default too, so that both share downloads


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = _parser().parse_args(argv)
    try:
        return int(options.run(options) or 0)
    except ModelError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m model", description="Inspect, convert and evaluate Vision Mamba weights."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    common = _common()
    inspect = commands.add_parser("inspect", parents=[common], help="show what a source contains, without running it")
    inspect.add_argument("--json", action="store_true", help="print JSON")
    inspect.set_defaults(run=_inspect)
    convert = commands.add_parser("convert", parents=[common], help="write safetensors, config.json and labels.json")
    convert.add_argument("directory", metavar="DIR", type=Path, help="directory to write; created if necessary")
    convert.add_argument("--force", action="store_true", help="replace existing files")
    convert.set_defaults(run=_convert)
    evaluate = commands.add_parser("evaluate", parents=[common], help="measure accuracy on labelled images")
    evaluate.add_argument(
        "folder", metavar="FOLDER", type=Path, help="a folder with one subfolder per class, named by class or wnid"
    )
    evaluate.add_argument(
        "--limit", type=_positive, metavar="N", help="at most N images, evenly distributed over the classes"
    )
    evaluate.add_argument(
        "--crop", choices=get_args(Crop), default="center", help="the middle (default), the full image, or padded"
    )
    evaluate.add_argument("--batch-size", type=_positive, metavar="N", help="images per forward pass (CPU 8, GPU 64)")
    evaluate.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    evaluate.add_argument("--json", action="store_true", help="print JSON")
    evaluate.set_defaults(run=_evaluate)
    return parser


def _common() -> argparse.ArgumentParser:
    """Arguments that all commands have: the source, and how to read it."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("source", metavar="SRC", help="a directory, a file, a name, or owner/name[@revision][:file]")
    common.add_argument(
        "--family", help="whose code trained the weights (vim, videomamba, mamba-reg), if the file does not say"
    )
    common.add_argument("--weights", default="model", help="which weights of a training checkpoint (model, model_ema)")
    common.add_argument(
        "--image-size", type=_size, metavar="N", help="pixels per side, or HxW; also determines the stride"
    )
    common.add_argument("--labels", metavar="FILE", help="class names: a file, imagenet-1k, or none")
    cache = os.environ.get("VIM_CACHE_DIR") or CACHE
    common.add_argument("--cache-dir", default=cache, metavar="DIR", help="directory for downloads (VIM_CACHE_DIR)")
    common.add_argument("--offline", action="store_true", help="never use the network (VIM_OFFLINE)")
    return common


def _positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


def _reading(options: argparse.Namespace) -> dict[str, Any]:
    offline = options.offline or os.environ.get("VIM_OFFLINE", "").lower() in ("1", "true", "yes", "on", "t", "y")
    shared = ("family", "weights", "image_size", "labels", "cache_dir")
    return {name: getattr(options, name) for name in shared} | {"offline": offline}


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    return int(height), int(width or height)


def _inspect(options: argparse.Namespace) -> None:
    from model.commands.inspect import as_text, describe

    report = describe(options.source, **_reading(options))
    print(json.dumps(report, indent=2) if options.json else as_text(report))


def _convert(options: argparse.Namespace) -> None:
    from model.commands.convert import check_free, convert
    from model.loading.load import read

    check_free(options.directory, force=options.force)
    contents = read(options.source, **_reading(options))
    for path in convert(contents, options.directory, force=options.force):
        print(f"{path}  {path.stat().st_size / 1e6:,.1f} MB")
    print(f"fingerprint {contents.fingerprint}, the same as the source's")
    for assumption in contents.assumptions:
        print(f"assumed, and written to config.json: {assumption}")


def _evaluate(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from model.commands.evaluate import as_text, check_classifier, evaluate
    from model.commands.image_folder import evenly_spaced, find
    from model.loading.load import load
    from model.runtime.runner import Runner

    vim = load(options.source, device=options.device, **_reading(options))
    check_classifier(vim.config)
    vim.preprocess = dataclasses.replace(vim.preprocess, crop=options.crop)
    found = find(options.folder, vim.labels)
    samples = evenly_spaced(found, options.limit)
    runner = Runner(vim, max_batch=options.batch_size)
    runner.verify_scan("auto")
    with tqdm(total=len(samples), unit=" images", disable=None) as progress:
        tally = evaluate(runner, samples, progress.update)
    about = {
        "source": options.source,
        "fingerprint": vim.fingerprint,
        "device": str(runner.device),
        "batch_size": runner.max_batch,
        "image_size": vim.preprocess.size,
        "crop": vim.preprocess.crop,
        "folder_images": len(found),
    }
    report = about | tally.report()
    print(json.dumps(report, indent=2) if options.json else as_text(report))
    return INTERRUPTED if tally.interrupted else 0


if __name__ == "__main__":
    sys.exit(main())
