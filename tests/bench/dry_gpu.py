"""Dry runs of the GPU benchmark in processes of their own, because they replace modules."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

from bench.gpu.build import EXTENSIONS, ROOT

FILES = {"selective_scan_cuda": "mamba_ssm-2.3.2.post1", "causal_conv1d_cuda": "causal_conv1d-1.7.0"}


def archives(folder: Path, *, without: str = "") -> Path:
    """Write source archives with the right names of files and no content, except for one module's kernels."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, extension in EXTENSIONS.items():
        with tarfile.open(folder / f"{FILES[name]}.tar.gz", "w:gz") as archive:
            for file in (extension.binding, *(extension.kernels if name != without else ())):
                content = f"// {file}\n".encode()
                entry = tarfile.TarInfo(f"{FILES[name]}/{extension.folder}/{file}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return folder


def command(out: Path, sources: Path, *options: str) -> list[str]:
    """Return the command of a dry run."""
    own = ["--dry-run", "--out", str(out), "--sources", str(sources), "--golden", str(sources / "none")]
    return [sys.executable, "-m", "bench.gpu", *own, *options]


def environment(*faults: str) -> dict[str, str]:
    """Return the environment of a dry run with these faults."""
    return os.environ | {"OMP_NUM_THREADS": "1", "BENCH_GPU_FAULTS": "\n".join(faults)}


def dry_run(out: Path, sources: Path, *options: str, faults: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run to the end."""
    words = command(out, sources, *options)
    return subprocess.run(words, cwd=ROOT, env=environment(*faults), capture_output=True, text=True, check=False)


def read(out: Path) -> dict[str, Any]:
    """Return the results in a folder."""
    found: dict[str, Any] = json.loads((out / "gpu.json").read_text())
    return found


def write(out: Path, data: dict[str, Any], **without: str) -> Path:
    """Write results except those entries of a part whose name contains the text; returns the folder."""
    kept = {
        part: {name: entry for name, entry in entries.items() if without[part] not in name}
        if part in without
        else entries
        for part, entries in data.items()
    }
    out.mkdir(parents=True)
    (out / "gpu.json").write_text(json.dumps(kept))
    return out


def statuses(data: dict[str, Any], part: str) -> dict[str, str]:
    """Return the status of every entry of a part."""
    return {name: entry["status"] for name, entry in data[part].items()}
