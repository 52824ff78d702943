"""The GPU benchmark's dry run goes through every part, resumes, and says so; the table holds what was recorded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.gpu.build import command, environment
from bench.gpu.record import Record
from bench.gpu.table import table

ROOT = Path(__file__).parents[2]


def dry_run(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the benchmark in a process of its own, because it replaces modules."""
    command = [
        sys.executable,
        "-m",
        "bench.gpu",
        "--dry-run",
        "--out",
        str(out),
        "--sources",
        str(out.parent),
        *options,
    ]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def read(path: Path) -> dict[str, Any]:
    """The content of a file of results."""
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.mark.slow
def test_a_dry_run_goes_through_every_part(tmp_path: Path) -> None:
    """A dry run passes every check, times all models, and does not repeat parts that have results."""
    out = tmp_path / "gpu.json"
    (tmp_path / "causal_conv1d-1.7.0.tar.gz").touch()
    done = dry_run(out)
    assert 0 == done.returncode, done.stderr
    found = read(out)

    assert found["about"]["dry_run"]
    assert ["causal_conv1d-1.7.0.tar.gz"] == list(found["build"])
    assert [] == [name for name, entry in found["check"].items() if not entry["ok"]]
    assert {"ours mamba_ssm", "reference float32", "reference autocast", "deit-tiny 48"} == {
        title.partition(", ")[0] for title in found["models"]
    }
    assert all("ms" in entry for part in ("kernels", "models") for entry in found[part].values())
    assert "says nothing about speed" in done.stdout

    again = dry_run(out)
    assert 0 == again.returncode, again.stderr
    assert found == read(out)


def test_a_dry_run_writes_where_no_real_run_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --out the results of a dry run are not in the file that a real run continues."""
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-m", "bench.gpu", "--dry-run", "--only", "build", "--sources", str(tmp_path)]
    (tmp_path / "causal_conv1d-1.7.0.tar.gz").touch()
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(command, env=env, capture_output=True, check=True)

    assert [tmp_path / "build" / "bench" / "gpu-dry-run.json"] == list(tmp_path.rglob("*.json"))


def test_time_that_is_up_is_for_the_next_run(tmp_path: Path) -> None:
    """When the time is up, the run ends with status 3 and names the part that the next run begins with."""
    done = dry_run(tmp_path / "gpu.json", "--only", "check", "--seconds", "0")

    assert 3 == done.returncode, done.stderr
    assert "check: time is up" in done.stdout


def test_results_of_another_machine_are_not_added_to(tmp_path: Path) -> None:
    """Results of another machine are refused, since ratios across machines mean nothing."""
    path = tmp_path / "gpu.json"
    record = Record(path, 60, dry_run=True)
    record.put("models", "ours, tiny, batch 1", {"ms": 1.0})
    assert Record(path, 60, dry_run=True).has("models", "ours, tiny, batch 1")
    path.write_text(json.dumps(record.data | {"about": record.data["about"] | {"device": "H100"}}))

    with pytest.raises(SystemExit, match="another machine"):
        Record(path, 60, dry_run=True)


def test_the_table_holds_what_was_recorded_and_no_more() -> None:
    """The table says out of memory or not measured, and has a ratio only where both sides were measured."""
    about = {"device": "H200", "torch": "2.11", "triton": "3.6", "date": "2026-11-23", "dry_run": False}
    models = {
        "ours triton, tiny, batch 1": {"ms": 0.5, "images_per_s": 2000.0},
        "reference autocast, tiny, batch 1": {"ms": 5.0, "images_per_s": 200.0},
        "ours triton, base, batch 8": {"ms": 4.0, "images_per_s": 2000.0},
        "reference autocast, base, batch 8": {"out_of_memory": "tried to allocate"},
        "reference float32, base, batch 8": {"ms": 4.0, "images_per_s": 2000.0},
    }
    lines = table({"about": about, "models": models}).splitlines()

    assert "| tiny, batch 1 | 2,000 | 200 | not measured | 10.00 |" == lines[2]
    assert "| base, batch 8 | 2,000 | out of memory | 2,000 |  |" == lines[3]
    assert "" == table({"about": about})


def test_the_kernels_are_built_for_one_architecture_and_without_a_network(tmp_path: Path) -> None:
    """The kernels are built for one architecture and without a network."""
    built = command(tmp_path / "mamba_ssm-2.3.2.post1.tar.gz", tmp_path / "site")

    assert {"--no-index", "--no-deps", "--no-build-isolation"} <= set(built)
    assert "9.0" == environment()["TORCH_CUDA_ARCH_LIST"]
    assert os.access(environment()["PYTORCH_NVCC"], os.X_OK)
