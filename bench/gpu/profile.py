"""Nsight Compute's counters of our kernels, from a process that runs one layer: python -m bench.gpu.profile WIDTH N."""

from __future__ import annotations

import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch

from bench.gpu import fused
from bench.gpu.cases import Plan, case, prepare
from bench.gpu.entry import PROFILE, Entry, SkippedError, Values

REPORT = "ncu.csv"


def entries(plan: Plan) -> list[Entry]:
    """Return the one entry."""
    run = partial(_profile, plan, plan.small_and_large[1])
    return [Entry(PROFILE, "ncu, one layer of tiny", run, 8, "triton", case("tiny", torch.float16))]


def _profile(plan: Plan, images: int) -> Values:
    """Write the counters beside the results. Raises SkippedError without the tool, CalledProcessError if it fails."""
    tool = shutil.which("ncu")
    if tool is None:
        raise SkippedError("ncu is not on the path")
    own = [sys.executable, "-m", "bench.gpu.profile", str(images)]
    sections = ["--section", "SpeedOfLight", "--section", "LaunchStats", "--section", "Occupancy"]
    which = ["--kernel-name", "regex:conv_project|scan_tokens|out_project|add_norm", "--launch-count", "4"]
    command = [tool, "--csv", "--clock-control", "none", *sections, *which, *own]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    (plan.results / REPORT).write_text(done.stdout, encoding="utf-8")
    return {"file": REPORT, "lines": done.stdout.count("\n")}


def main() -> None:
    """Launch each kernel of a layer once."""
    plan = Plan(dry_run=False, work=Path(), results=Path())
    prepare(plan)
    with torch.inference_mode():
        for launch in fused.layer(plan, "tiny", int(sys.argv[1])).launches().values():
            launch()
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
