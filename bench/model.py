"""The model alone on this machine's CPU: our scan beside the reference loop, interleaved, milliseconds an image.

    python -m bench.model --batches 1 8 --rounds 5

Weights are random: speed does not depend on them. The reference loop is `scan="reference"`, the recurrence token by
token as the reference's own `selective_scan_ref` computes it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch

from model.config import VimConfig
from model.scan import choose, names_on
from model.vim import Vim


def random_model(config: VimConfig, scan: str) -> Vim:
    """A model with seeded random weights that are about as large as trained ones."""
    vim = Vim(config, choose(scan, torch.device("cpu")).fn).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in vim.parameters():
        parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
    return vim


def milliseconds_per_image(vim: Vim, images: torch.Tensor) -> float:
    """One timed forward pass."""
    start = time.perf_counter()
    with torch.inference_mode():
        vim(images)
    return 1000 * (time.perf_counter() - start) / len(images)


def compare(config: VimConfig, batch: int, rounds: int) -> dict[str, float]:
    """Median milliseconds an image of every scan, one round of each after the other."""
    names = names_on(torch.device("cpu"))
    models = {name: random_model(config, name) for name in names}
    images = torch.randn(batch, config.channels, *config.image_size)
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, vim in models.items():
            times[name].append(milliseconds_per_image(vim, images))
    return {name: round(statistics.median(values[1:] or values), 1) for name, values in times.items()}


def main() -> None:
    """Print a JSON object: batch size -> scan -> milliseconds an image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    result = {f"batch {batch}": compare(VimConfig(), batch, options.rounds) for batch in options.batches}
    print(
        json.dumps(
            {"model": "vim-tiny at 224 px", "threads": torch.get_num_threads(), "ms_per_image": result}, indent=2
        )
    )


if __name__ == "__main__":
    main()
