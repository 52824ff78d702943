"""vim-tiny on this machine's CPU beside the reference loop, plain torch and DeiT-tiny: ratios from interleaved turns.

    python -m bench.cpu --out bench/results/cpu.json

Each round runs every model once, one after the other, so that all run under the same conditions; a ratio is the median
of the rounds' ratios. Weights are random: speed does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

from service.system import cpus

if __name__ == "__main__":  # before torch is imported, as in the device process
    os.environ.update(cpus.thread_environment(cpus.available_cpus()))

import torch
from safetensors.torch import save_file
from torch import Tensor

from bench import selective_scan_ref
from bench.deit import DeiTTiny
from bench.model import random_model
from model.backends.fusion import fuse
from model.config import VimConfig
from model.scan import ScanChoice, choose
from model.vim import Vim

ROOT = Path(__file__).resolve().parents[1]
Forward = Callable[[Tensor], Tensor]
REFERENCE = "selective_scan_ref"


def vim_tiny(side: int, scan: str, dtype: torch.dtype = torch.float32) -> Vim:
    """The model, with its layers compiled as one function where the scan supports that."""
    vim = random_model(VimConfig(image_size=(side, side)), "torch").cast(dtype)
    vim.use_scan(
        ScanChoice(scan, selective_scan_ref.scan, "") if scan == REFERENCE else choose(scan, torch.device("cpu"))
    )
    fuse(vim)
    return vim


def turns(runs: dict[str, tuple[Forward, Tensor]], rounds: int, warm: int = 1) -> dict[str, list[float]]:
    """Milliseconds per image of each run, in turns; the first `warm` rounds are not counted."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    with torch.inference_mode():
        for turn in range(rounds + warm):
            for name, (forward, images) in runs.items():
                start = time.perf_counter()
                forward(images)
                if turn >= warm:
                    times[name].append(1000 * (time.perf_counter() - start) / len(images))
    return times


def ratio(over: list[float], under: list[float]) -> float:
    """The median of the ratios of all rounds."""
    return round(statistics.median(a / b for a, b in zip(over, under, strict=True)), 2)


def compare(runs: dict[str, tuple[Forward, Tensor]], rounds: int) -> dict[str, object]:
    """Compare all runs with the one named numba: medians, fastest turns, and ratios."""
    times = turns(runs, rounds)
    return {
        "load": round(os.getloadavg()[0], 1),
        "median_ms": {name: round(statistics.median(values), 1) for name, values in times.items()},
        "fastest_ms": {name: round(min(values), 1) for name, values in times.items()},
        "times_numba": {name: ratio(values, times["numba"]) for name, values in times.items() if name != "numba"},
    }


def at_size(side: int, batch: int, scans: list[str], rounds: int) -> dict[str, object]:
    """Compare these scans, numba and DeiT-tiny at one image size."""
    images = torch.randn(batch, 3, side, side)
    runs: dict[str, tuple[Forward, Tensor]] = {name: (vim_tiny(side, name), images) for name in ["numba", *scans]}
    runs["numba, bfloat16"] = (vim_tiny(side, "numba", torch.bfloat16), images.bfloat16())
    return compare(runs | {"deit": (DeiTTiny(side).eval(), images)}, rounds)


def growth(rounds: int) -> float:
    """The time of 785 tokens (448 px) divided by that of 197 tokens (224 px)."""
    small, large = (vim_tiny(side, "numba") for side in (224, 448))
    times = turns({"224": (small, torch.randn(1, 3, 224, 224)), "448": (large, torch.randn(1, 3, 448, 448))}, rounds)
    return ratio(times["448"], times["224"])


_LOAD = """
import sys, time
from pathlib import Path
import torch, model
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
Path("/proc/self/clear_refs").write_text("5")  # what importing took at its peak does not count
before = peak()
start = time.perf_counter()
model.load(sys.argv[1])
print(time.perf_counter() - start, (peak() - before) / 1000)
"""


def loading() -> dict[str, float]:
    """Load vim-base from a .safetensors file in a new process: seconds, and growth of peak memory in MB."""
    base = VimConfig(embed_dim=768, d_state=16)
    with tempfile.TemporaryDirectory() as directory:
        base.save(Path(directory) / "config.json")
        save_file(dict(random_model(base, "torch").state_dict()), Path(directory) / "model.safetensors")
        command = [sys.executable, "-c", _LOAD, directory]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    seconds, megabytes = map(float, done.stdout.split())
    return {"seconds": round(seconds, 2), "megabytes": round(megabytes)}


def processor() -> str:
    """The CPU as /proc describes it, with its instructions for narrow multiplication."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    found = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    narrow = {"avx512f", "avx512_bf16", "amx_bf16"} & set(found.get("flags", "").split())
    return " ".join([found.get("model name", "unknown"), *sorted(narrow)])


def main() -> None:
    """Measure, print, and write JSON when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    few = max(2, options.rounds // 3)
    result = {
        "date": date.today().isoformat(),
        "cpu": processor(),
        "machine": f"{cpus.available_cpus()} cores, {platform.machine()}, load {os.getloadavg()[0]:.1f} before",
        "threads": torch.get_num_threads(),
        "224 px, batch 1": at_size(224, 1, ["torch", REFERENCE], options.rounds),
        "224 px, batch 8": at_size(224, 8, ["torch", REFERENCE], few),
        "1024 px, batch 1": at_size(1024, 1, [], few),
        "time for 4 x the tokens": growth(options.rounds),
        "vim-base from safetensors": loading(),
    }
    print(json.dumps(result, indent=2))
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
