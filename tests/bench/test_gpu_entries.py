"""One entry of the GPU benchmark: its status, its record, the jobs that it waits for; and the table."""

from __future__ import annotations

import stat
import subprocess
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gpu import build, child, fused, jobs
from bench.gpu.build import EXTENSIONS
from bench.gpu.cases import Plan, random_model
from bench.gpu.entry import CHECK, Entry, PostponedError, SkippedError, attempt, why_not
from bench.gpu.parts import PARTS
from bench.gpu.record import Record, describe
from bench.gpu.table import table
from tests.bench import dry_gpu


def entry(part: str, name: str, backend: str = "", case: str = "", run: Callable[[], Any] = dict) -> Entry:
    """An entry that does nothing."""
    return Entry(part, name, run, backend=backend, case=case)


@pytest.mark.parametrize(
    ("backend", "case", "expected"),
    [
        ("triton", "tiny float16", "skipped"),
        ("triton", "", "skipped"),
        ("triton", "tiny float32", "postponed"),
        ("triton", "base float16", None),
        ("mamba_ssm", "tiny float16", None),
        ("", "", None),
    ],
)
def test_a_check_concerns_its_own_backend_and_case(backend: str, case: str, expected: str | None) -> None:
    """A failed check stops the timing of its case, a check that has not run delays it, other checks do neither."""
    checks = [entry(CHECK, f"check {case}", "triton", case) for case in ("tiny float16", "tiny float32")]
    recorded = {"check tiny float16": {"status": "failed", "reason": "wrong result"}}
    found = why_not(entry("models", "timed", backend, case), checks, lambda check: recorded.get(check.name, {}))

    assert expected == (found and found["status"])
    assert why_not(checks[0], checks, lambda check: recorded.get(check.name, {})) is None


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "out_of_memory", "CUDA out of memory"),
        (SkippedError("no tool"), "skipped", "no tool"),
        (PostponedError("not yet"), "postponed", "not yet"),
        (SystemExit("the server did not become ready"), "failed", "SystemExit: the server did not"),
        (subprocess.CalledProcessError(3, ["ncu"], b"out", b"err"), "failed", "exit status 3.\nout\nerr"),
    ],
)
def test_an_entry_that_raises_becomes_a_status_and_a_reason(error: BaseException, status: str, reason: str) -> None:
    """Every kind of error is caught, and the reason has its message."""

    def run() -> dict[str, Any]:
        raise error

    found = attempt(entry("models", "raises", run=run))
    assert status == found["status"]
    assert reason in found["reason"]


@pytest.mark.parametrize(("factor", "ok"), [(1.0, True), (1.001, False), (float("nan"), False)])
def test_fused_layers_that_are_off_fail_their_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float, ok: bool
) -> None:
    """The check fails for an error of a thousandth in float32, and for values that are not finite."""
    dry = Plan(dry_run=True, work=tmp_path, results=tmp_path)
    config = dry.config("tiny", num_classes=0)
    vim = random_model(config, dry.device)
    tokens = torch.randn(1, config.seq_len, config.embed_dim)
    monkeypatch.setattr(fused, "encoder", lambda *_: (vim, lambda x: factor * vim.encode(x), tokens))
    checks = [one for one in PARTS[0].of(dry) if one.name == "triton: fused layers, tiny float32, few rows"]

    assert ok is checks[0].run()["ok"]


def test_a_lost_device_ends_the_process_behind_the_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an error that makes the device unusable the process runs no other entry, and the record has the reason."""

    def illegal() -> dict[str, Any]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(child, "_usable", lambda _: False)
    entries = [entry("kernels", "good"), entry("kernels", "bad", run=illegal), entry("kernels", "later")]
    dry = Plan(dry_run=True, work=tmp_path, results=tmp_path)
    record = Record(tmp_path / "gpu.json")

    assert child.LOST == child.run(dry, entries, [], record, time.time() + 60)
    found = Record(tmp_path / "gpu.json")
    assert ["ok", "failed", None] == [found.status(one) for one in entries]
    assert "illegal memory access" in found.get(entries[1])["reason"]


def test_an_entry_that_does_not_fit_into_the_time_is_postponed(tmp_path: Path) -> None:
    """An entry that needs more than the remaining time does not start."""
    long = Entry("models", "long", dict, seconds=100)
    record = Record(tmp_path / "gpu.json")
    child.run(Plan(dry_run=True, work=tmp_path, results=tmp_path), [long], [], record, time.time() + 50)

    assert "postponed" == record.status(long)
    assert "needs 100 s" in record.get(long)["reason"]


def test_results_of_another_machine_are_not_added_to(tmp_path: Path) -> None:
    """Results of another machine are refused, since ratios across machines mean nothing."""
    record = Record(tmp_path / "gpu.json")
    about = describe(dry_run=True)
    record.accept(about)
    Record(record.path).accept(about | {"date": "2027-01-01"})

    with pytest.raises(SystemExit, match="another machine"):
        Record(record.path).accept(about | {"device": "H100"})


def test_infinite_errors_are_written_as_words(tmp_path: Path) -> None:
    """Infinity, which JSON does not have, is written as a word, and the file is valid."""
    record = Record(tmp_path / "gpu.json")
    record.put(CHECK, "wrong", {"status": "failed", "relative": float("inf")})

    assert "inf" == Record(record.path).data[CHECK]["wrong"]["relative"]


def test_a_job_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    """A job that exceeds its time limit is killed and recorded; entries that wait for it are skipped."""
    job = jobs.Job("slow", ["sleep", "60"], tmp_path, 0.2)
    with pytest.raises(SkippedError, match="slow failed: took longer"):
        jobs.wait_for(tmp_path, "slow", 30)
    job.stop()


def test_who_waits_for_a_job_does_not_wait_for_ever(tmp_path: Path) -> None:
    """A job that is not ready in time postpones the entries that need it."""
    job = jobs.Job("slow", ["sleep", "60"], tmp_path, 60)
    with pytest.raises(PostponedError, match="not ready"):
        jobs.wait_for(tmp_path, "slow", 0.1)
    job.stop()


@pytest.mark.parametrize("name", EXTENSIONS)
def test_the_sources_are_for_the_forward_direction_only(tmp_path: Path, name: str) -> None:
    """A function that is left out raises an error, and its files are not compiled."""
    found = build.unpack(EXTENSIONS[name], dry_gpu.archives(tmp_path / "sources"), tmp_path / "built")

    binding = found[0].read_text()
    assert all(f"void {function}(" in binding for function in EXTENSIONS[name].absent)
    assert not [path.name for path in found if "bwd" in path.name or "update" in path.name]


def test_an_archive_that_is_not_one_is_an_error(tmp_path: Path) -> None:
    """A damaged archive is an error."""
    (tmp_path / "mamba_ssm-1.tar.gz").write_bytes(b"nothing")
    with pytest.raises(tarfile.TarError):
        build.unpack(EXTENSIONS["selective_scan_cuda"], tmp_path, tmp_path / "built")


def test_the_toolkit_is_where_nvcc_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of the toolkit comes from nvcc's output, because nvcc on the path may be a wrapper."""
    real = tmp_path / "cuda-13.0" / "bin"
    real.mkdir(parents=True)
    (real / "nvcc").touch()
    wrapper = tmp_path / "bin" / "nvcc"
    wrapper.parent.mkdir()
    wrapper.write_text(f"#!/bin/sh\necho '#$ _SPACE_= ' >&2\necho '#$ _HERE_={real}' >&2\n")
    wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(wrapper.parent), prepend=":")

    assert str(real.parent) == build.cuda_home()
    assert ("9.0", str(real.parent)) == tuple(build.environment()[x] for x in ("TORCH_CUDA_ARCH_LIST", "CUDA_HOME"))


def test_the_table_holds_what_was_recorded_and_no_more() -> None:
    """The table names what was not measured and why, and has a ratio only if both values were measured."""
    about = {"device": "H200", "torch": "2.11", "triton": "3.6", "date": "2026-11-23", "dry_run": False}
    headline = {
        "ours triton, tiny, batch 1": {"status": "ok", "ms": 0.5, "images_per_s": 2000.0},
        "reference autocast, tiny, batch 1": {"status": "ok", "ms": 5.0, "images_per_s": 200.0},
    }
    models = {
        "ours triton, base, batch 8": {"status": "ok", "ms": 4.0, "images_per_s": 2000.0},
        "reference autocast, base, batch 8": {"status": "out_of_memory", "reason": "tried to allocate"},
        "reference float32, base, batch 8": {"status": "ok", "ms": 4.0, "images_per_s": 2000.0},
    }
    kernels = {"scan, tiny, batch 1": {"status": "ok", "us": 20.04, "model_us": 55}}
    data = {"about": about, "headline": headline, "models": models, "kernels": kernels}
    lines = table(data).splitlines()

    assert "| tiny, batch 1 | 2,000 | 200 | not measured | 10.00 |" == lines[2]
    assert "| base, batch 8 | 2,000 | out of memory | 2,000 |  |" == lines[3]
    assert "| µs, by the model | scan |" in lines
    assert "| tiny, batch 1 | 20.0 (55) |" in lines
    assert "" == table({"about": about})
