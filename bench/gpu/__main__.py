"""Build the baseline, check, time: python -m bench.gpu --out bench/results/gpu.json

    --only build,check,kernels,models    parts to run, in this order; each ends within --seconds
    --dry-run                            on a CPU, in miniature, with stand-ins for the compiled kernels; into
                                         build/bench/gpu-dry-run.json unless --out says otherwise

Entries that the result file already has are not computed again. Exit status: 0 done, 1 a check failed, 3 out of time.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch

from bench.gpu import build, checks, kernels, models, standins
from bench.gpu.cases import Plan
from bench.gpu.record import OutOfTime, Record
from bench.gpu.table import table
from bench.gpu.timing import Clock

PARTS = ("build", "check", "kernels", "models")
UNFINISHED = 3
RESULTS = Path("bench/results/gpu.json")
DRY_RESULTS = Path("build/bench/gpu-dry-run.json")  # a real run never reads it


def main(arguments: list[str] | None = None) -> int:
    """Run the parts; returns the exit status."""
    options = _parser().parse_args(arguments)
    options.out = options.out or (DRY_RESULTS if options.dry_run else RESULTS)
    plan = _plan(dry_run=options.dry_run)
    status = 0
    for part in PARTS:
        if part in options.only.split(","):
            record = Record(options.out, options.seconds, dry_run=plan.dry_run)
            try:
                _run(part, plan, record, options)
            except OutOfTime:
                print(f"{part}: time is up, run again to go on", flush=True)
                status = UNFINISHED
            if failed := checks.failed(record):
                print("failed: " + "; ".join(failed), flush=True)
                return 1
    print(table(record.data), flush=True)
    return status


def _run(part: str, plan: Plan, record: Record, options: argparse.Namespace) -> None:
    clock = Clock(plan.device, 3, 0.01) if plan.dry_run else Clock(plan.device)
    if part == "build":
        build.run(plan, record, options.sources, options.target)
    elif part == "check":
        checks.run(plan, record, options.golden)
    elif part == "kernels":
        kernels.run(plan, record, clock)
    else:
        models.run(plan, record, clock)


def _plan(*, dry_run: bool) -> Plan:
    if dry_run:
        standins.install()
        return Plan(torch.device("cpu"), dry_run=True)
    if not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device here; --dry-run goes through everything without one")
    return Plan(torch.device("cuda", 0), dry_run=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--seconds", type=float, default=480, help="longest time for one part")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--golden", type=Path, help="the folder of golden data; without it those checks are left out")
    parser.add_argument("--sources", type=Path, default=Path(".carry"), help="folder of the two .tar.gz to build")
    parser.add_argument("--target", type=Path, default=Path("/tmp/vim-bench-kernels"), help="where they are built to")
    parser.add_argument("--dry-run", action="store_true")
    return parser


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # page-locked memory and graphs need no clean-up
