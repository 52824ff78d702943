"""The baseline's kernels, built from the source archives of mamba-ssm and causal-conv1d for this GPU only.

The archives are downloaded beforehand with pip download --no-deps --no-binary :all: --no-build-isolation, see
bench/README.md.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from bench.gpu.cases import Plan
from bench.gpu.record import Record

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 450  # of the 8 minutes that a part may take
MODULES = ("selective_scan_cuda", "causal_conv1d_cuda")


def run(plan: Plan, record: Record, sources: Path, target: Path) -> None:
    """Build what is missing below `target` and make it importable."""
    sys.path.insert(0, str(target))
    for archive in sorted(sources.glob("*.tar.gz")):
        if record.has("build", archive.name) and any(target.glob("*.so")):
            continue
        record.check_time()
        if plan.dry_run:
            record.put("build", archive.name, {"command": " ".join(command(archive, target))})
            continue
        start = time.monotonic()
        done = subprocess.run(command(archive, target), env=environment(), timeout=LIMIT_S, check=False)
        record.put("build", archive.name, {"seconds": round(time.monotonic() - start), "status": done.returncode})


def command(archive: Path, target: Path) -> list[str]:
    """Return the pip command for one source archive; it downloads nothing."""
    pip = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--no-build-isolation", "--no-cache-dir"]
    return [*pip, "--upgrade", "--target", str(target), str(archive)]


def environment() -> dict[str, str]:
    """Return the environment that compiles for sm_90 only; torch uses the compiler wrapper only with ninja."""
    wrapper = ROOT / "deploy" / "docker" / "nvcc"
    return os.environ | {
        "CUDA_HOME": os.environ.get("CUDA_HOME", "/usr/local/cuda"),
        "PYTORCH_NVCC": str(wrapper),
        "TORCH_CUDA_ARCH_LIST": "9.0",
        "MAX_JOBS": str(os.cpu_count() or 4),
        "MAMBA_FORCE_BUILD": "TRUE",
        "MAMBA_KEEP_CUDA_BUILD": "TRUE",
        "CAUSAL_CONV1D_FORCE_BUILD": "TRUE",
    }
