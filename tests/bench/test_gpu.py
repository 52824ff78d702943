"""The GPU benchmark's dry run: one failure does not affect the other entries, and a killed run can be continued."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bench.gpu.build import ROOT
from bench.gpu.profile import REPORT
from bench.gpu.sweep import TABLE
from tests.bench import dry_gpu

pytestmark = pytest.mark.slow
NO_TOOL = {"nvidia-smi", "ncu, one layer of tiny"}


@dataclass(frozen=True)
class Clean:
    """A dry run without faults."""

    sources: Path
    out: Path
    data: dict[str, Any]
    output: str


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Clean:
    """Run everything once; the other tests remove parts of the results and continue."""
    sources = dry_gpu.archives(tmp_path_factory.mktemp("sources"))
    out = tmp_path_factory.mktemp("results")
    done = dry_gpu.dry_run(out, sources)
    assert done.returncode == 0, done.stdout + done.stderr
    return Clean(sources, out, dry_gpu.read(out), done.stdout)


def test_a_dry_run_goes_through_every_part(clean: Clean) -> None:
    """A dry run checks, times and serves everything; it skips only entries whose tool is not installed."""
    left_out = {
        name: entry["reason"]
        for part, entries in clean.data.items()
        if isinstance(entries, dict)
        for name, entry in entries.items()
        if isinstance(entry, dict) and entry["status"] != "ok"
    }
    assert set(left_out) <= NO_TOOL, left_out
    assert all("is not on the path" in reason for reason in left_out.values())
    parts = ["facts", "build", "check", "headline", "kernels", "sweep", "models", "service", "profile"]
    assert set(parts) <= set(clean.data)
    assert clean.data["service"]["miniature, 256 clients"]["images_per_s"] > 0
    failed = {(name.partition(",")[0], len(entry["failed"])) for name, entry in clean.data["sweep"].items()}
    assert {("project", 1), ("out_project", 1), ("scan", 0)} == failed  # a tile of 24 tokens, which pieces may have
    assert "says nothing about speed" in clean.output


def test_the_fastest_tiles_are_written_beside_the_results(clean: Clean) -> None:
    """The table names a tile that ran for every kernel and number of rows, and never the package's own file."""
    tiles = json.loads((clean.out / TABLE).read_text())["tiles"]

    assert {"project", "out_project", "scan"} == {best["kernel"] for best in tiles}
    assert {16, 24, 32} >= {best["tokens"] for best in tiles}
    assert all({"width", "dtype", "rows", "channels", "warps", "stages"} <= set(best) for best in tiles)
    assert clean.out != ROOT / "model" / "backends" / "triton"


def test_the_results_are_few_files(clean: Clean) -> None:
    """A run writes at most eight files, the limit for files from a lent machine."""
    assert {"gpu.json", TABLE} == {path.name for path in clean.out.iterdir() if path.is_file()}
    assert len({"gpu.json", TABLE, REPORT}) <= 8


def test_what_has_its_result_is_not_done_again(clean: Clean) -> None:
    """A second call changes only the number of calls and the background jobs."""
    before = dry_gpu.read(clean.out)
    done = dry_gpu.dry_run(clean.out, clean.sources, "--only", "headline")
    after = dry_gpu.read(clean.out)

    assert 0 == done.returncode, done.stderr
    assert (1 + before.pop("calls"), before.pop("build").keys()) == (after.pop("calls"), after.pop("build").keys())
    assert before == after


KERNEL_FAULTS = {
    "first_norm, tiny, batch 2": ("raise:RuntimeError", "RuntimeError: CUDA error: an illegal memory access"),
    "in_proj, tiny, batch 2": ("raise:ScanError", "ScanError: scan 'triton' cannot run"),
    "project, tiny, batch 2": ("raise:TimeoutExpired", "TimeoutExpired: Command '['tool']' timed out"),
    "scan, tiny, batch 2": ("raise:CalledProcessError", "the tool's last words"),
    "out_project, tiny, batch 2": ("raise:ImportError", "ImportError: undefined symbol"),
    "in_proj, tiny, batch 1": ("kill", "its process ended with -9"),
    "project, tiny, batch 1": ("hang", "took longer than 2 s"),
}


@pytest.fixture(scope="module")
def faulty_kernels(clean: Clean, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run the kernels with a fault in seven of them."""
    out = dry_gpu.write(tmp_path_factory.mktemp("kernels") / "out", clean.data, kernels="")
    faults = tuple(f"{kind} kernels: {name}" for name, (kind, _) in KERNEL_FAULTS.items())
    done = dry_gpu.dry_run(out, clean.sources, "--only", "kernels", faults=faults)
    assert done.returncode == 1, done.stderr
    return dry_gpu.read(out)


@pytest.mark.parametrize("name", KERNEL_FAULTS)
def test_an_entry_that_fails_says_why(faulty_kernels: dict[str, Any], name: str) -> None:
    """An entry that raises, ends its process or hangs is recorded as failed, with its own message."""
    entry = faulty_kernels["kernels"][name]

    assert "failed" == entry["status"]
    assert KERNEL_FAULTS[name][1] in entry["reason"]


def test_the_entries_beside_it_are_measured(faulty_kernels: dict[str, Any], clean: Clean) -> None:
    """The other kernels are measured, and earlier results are unchanged."""
    kernels = faulty_kernels["kernels"]

    assert clean.data["kernels"].keys() == kernels.keys()
    assert {"ok"} == {entry["status"] for name, entry in kernels.items() if name not in KERNEL_FAULTS}
    assert clean.data["headline"] == faulty_kernels["headline"]


def test_a_failed_check_stops_the_timing_of_its_backend_only(clean: Clean, tmp_path: Path) -> None:
    """If the baseline's scan is wrong, only its timing is skipped. The next call tries the failed entries again."""
    out = dry_gpu.write(tmp_path / "out", clean.data, check="mamba_ssm: scan", models="")
    done = dry_gpu.dry_run(
        out, clean.sources, "--only", "check,models", faults=("wrong check: mamba_ssm: scan", "memory")
    )
    found = dry_gpu.read(out)
    assert 1 == done.returncode, done.stderr
    wrong = found["check"]["mamba_ssm: scan, tiny float16"]
    assert ("failed", "wrong result") == (wrong["status"], wrong["reason"])
    assert 0 < wrong["relative"]
    for name, entry in found["models"].items():
        assert ("skipped" if "mamba_ssm" in name else "ok") == entry["status"], name
    skipped = found["models"]["ours mamba_ssm, tiny 224, batch 1"]
    assert "its check 'mamba_ssm: scan, tiny float16' failed: wrong result" == skipped["reason"]

    again = dry_gpu.dry_run(out, clean.sources, "--only", "check,models", faults=("memory",))
    found = dry_gpu.read(out)
    assert 0 == again.returncode, again.stderr
    assert {"ok"} == set(dry_gpu.statuses(found, "check").values())
    large = found["models"]["ours mamba_ssm, tiny 224, batch 2"]
    assert ("out_of_memory", "ok") == (large["status"], found["models"]["ours mamba_ssm, tiny 224, batch 1"]["status"])
    assert "a batch of 2 does not fit; 1 does" in large["reason"]


def test_a_failed_build_leaves_out_what_needs_it(clean: Clean, tmp_path: Path) -> None:
    """If the build of the baseline fails, our model and DeiT are timed, and the reference has the build's error."""
    sources = dry_gpu.archives(tmp_path / "sources", without="selective_scan_cuda")
    out = dry_gpu.write(tmp_path / "out", clean.data, check="reference", headline="tiny 224, batch 1", build="")
    done = dry_gpu.dry_run(out, sources, "--only", "check,headline")
    found = dry_gpu.read(out)

    assert 0 == done.returncode, done.stdout
    build = found["build"]["selective_scan_cuda"]
    assert ("failed", "exit status 1") == (build["status"], build["reason"])
    assert "does not have selective_scan_fwd_fp32.cu" in build["log"][-1]
    assert "ok" == found["build"]["causal_conv1d_cuda"]["status"]
    said = "selective_scan_cuda failed: exit status 1: mamba_ssm-2.3.2.post1.tar.gz does not have"
    assert said in found["check"]["reference float32: logits"]["reason"]
    for name, entry in found["headline"].items():
        theirs = name.startswith("reference") and name.endswith("tiny 224, batch 1")
        assert ("skipped" if theirs else "ok") == entry["status"], name
        assert not theirs or said in entry["reason"]


def test_a_kernel_that_raises_does_not_hide_the_others(clean: Clean, tmp_path: Path) -> None:
    """If the scan and its candidates raise, the other kernels are measured, and the sweep has the reason."""
    out = dry_gpu.write(tmp_path / "out", clean.data, kernels="batch 1", sweep="")
    faults = ("kernel scan", "kernel candidates")
    done = dry_gpu.dry_run(out, clean.sources, "--only", "kernels,sweep", faults=faults)
    found = dry_gpu.read(out)

    assert 1 == done.returncode, done.stderr
    failed = {name for name, status in dry_gpu.statuses(found, "kernels").items() if status != "ok"}
    assert {"scan, tiny, batch 1"} == failed
    assert "RuntimeError: Triton Error [CUDA]: scan raised" == found["kernels"]["scan, tiny, batch 1"]["reason"]
    for name, entry in found["sweep"].items():
        raised = "scan" if name.startswith("scan") else "candidates"
        assert f"RuntimeError: Triton Error [CUDA]: {raised} raised" == entry["reason"]


def test_a_process_that_cannot_start_fails_its_entries(clean: Clean, tmp_path: Path) -> None:
    """If the process cannot start, each of its entries has its message, and earlier results are kept."""
    out = dry_gpu.write(tmp_path / "out", clean.data, kernels="batch 1")
    done = dry_gpu.dry_run(out, clean.sources, "--only", "kernels", faults=("import selective_scan_cuda",))
    found = dry_gpu.read(out)

    assert 1 == done.returncode, done.stderr
    for name, entry in found["kernels"].items():
        assert ("failed" if name.endswith("batch 1") else "ok") == entry["status"]
        assert entry["status"] == "ok" or "ImportError: selective_scan_cuda does not load" in entry["reason"]


def test_a_run_that_is_killed_goes_on_where_it_was(clean: Clean, tmp_path: Path) -> None:
    """After SIGKILL the file is complete and no process writes to it; the next call runs the remaining entries."""
    out = dry_gpu.write(tmp_path / "out", clean.data, kernels="batch 1")
    words = dry_gpu.command(out, clean.sources, "--only", "kernels")
    first = [*dry_gpu.statuses(dry_gpu.read(out), "kernels").values()].count("ok")
    process = subprocess.Popen(words, cwd=ROOT, env=dry_gpu.environment(), stdout=subprocess.DEVNULL)
    while [*dry_gpu.statuses(dry_gpu.read(out), "kernels").values()].count("ok") < first + 3:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.5)
    killed = dry_gpu.read(out)
    time.sleep(1)
    assert killed == dry_gpu.read(out)
    assert clean.data["kernels"].keys() != killed["kernels"].keys()

    done = dry_gpu.dry_run(out, clean.sources, "--only", "kernels")
    found = dry_gpu.read(out)
    assert 0 == done.returncode, done.stderr
    assert clean.data["kernels"].keys() == found["kernels"].keys()
    for name, entry in killed["kernels"].items():
        assert entry["status"] != "ok" or entry == found["kernels"][name]


def test_time_that_is_up_is_for_the_next_call(tmp_path: Path) -> None:
    """Without time left no entry starts, each is recorded as postponed, and the status is 3."""
    done = dry_gpu.dry_run(tmp_path / "out", tmp_path, "--only", "headline", "--seconds", "0")
    headline = dry_gpu.read(tmp_path / "out")["headline"]

    assert 3 == done.returncode, done.stderr
    assert {("postponed", "the time was over before its turn")} == {
        (entry["status"], entry["reason"]) for entry in headline.values()
    }
