"""What the GPU benchmark does on a lent machine: its list of parts, their seconds, what travels; and its own parts."""

from __future__ import annotations

import stat
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gpu import build, child, faults, freight, fused, jobs, parts
from bench.gpu.__main__ import main
from bench.gpu.build import EXTENSIONS
from bench.gpu.cases import Plan, prepare, random_model
from bench.gpu.entry import CHECK, Entry, PostponedError, SkippedError, attempt, why_not
from bench.gpu.freight import WHEELS, fits_python, weigh
from bench.gpu.parts import PARTS, TOTAL_S
from bench.gpu.record import Record, describe
from bench.gpu.table import table
from tests.bench import dry_gpu

HEADLINE = [
    "ours triton, tiny 224, batch 64",
    "ours triton, tiny 224, batch 1",
    "deit-tiny compiled, 224, batch 64",
    "deit-tiny compiled, 224, batch 1",
    "reference autocast, tiny 224, batch 64",
    "reference autocast, tiny 224, batch 1",
    "reference float32, tiny 224, batch 64",
    "reference float32, tiny 224, batch 1",
]


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """The plan of a real run."""
    return Plan(dry_run=False, work=tmp_path, results=tmp_path)


def names(plan: Plan, part: str) -> list[str]:
    """The names of a part's entries."""
    return [entry.name for found in PARTS if found.name == part for entry in found.of(plan)]


def test_the_parts_in_order_fit_into_one_call(plan: Plan) -> None:
    """The parts are these, and their seconds are at most those of one call."""
    expected = ["check", "headline", "kernels", "sweep", "models", "service"]
    assert expected == [part.name for part in PARTS]
    assert sum(part.seconds for part in PARTS) <= TOTAL_S == 480


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_the_entries_of_a_part_are_few_enough_for_its_seconds(plan: Plan, part: parts.Part) -> None:
    """The entries' expected seconds fit, every name is there once, and one entry alone always fits."""
    entries = part.of(plan)
    assert sum(entry.seconds for entry in entries) <= part.seconds
    assert len({entry.name for entry in entries}) == len(entries)
    assert {entry.part for entry in entries} <= {part.name, "facts", "profile"}


def test_the_headline_is_what_was_asked_for(plan: Plan) -> None:
    """Tiny at 64 and at 1: ours, DeiT-tiny compiled, the reference under autocast and in float32."""
    assert names(plan, "headline") == HEADLINE


def test_every_kernel_is_timed_alone_at_every_width_and_batch(plan: Plan) -> None:
    """Five kernels, three widths, four batches."""
    wanted = {
        f"{kernel}, {width}, batch {images}"
        for kernel in ("first_norm", "in_proj", "project", "scan", "out_project")
        for width in ("tiny", "small", "base")
        for images in (1, 8, 64, 128)
    }
    assert wanted <= set(names(plan, "kernels"))


def test_what_is_timed_is_checked_in_every_way(plan: Plan) -> None:
    """Three widths, two dtypes, and the small tile, the 64-row tile, pieces, and the batch that is timed."""
    wanted = {
        f"triton: fused layers, {width} {dtype}, {way}"
        for width in ("tiny", "small", "base")
        for dtype in ("float16", "float32")
        for way in ("small tile", "64-row tile", "pieces", "batch of 64")
    }
    assert wanted <= set(names(plan, CHECK))


def test_a_real_run_has_no_faults(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Faults are put into a dry run only, whatever the environment says."""
    monkeypatch.setenv(faults.VARIABLE, "raise:RuntimeError headline")
    dry = Plan(dry_run=True, work=plan.work, results=plan.results)
    with pytest.raises(RuntimeError, match="illegal memory"):
        PARTS[1].of(dry)[0].run()

    monkeypatch.setattr(faults, "applied", lambda _: pytest.fail("a fault in a real run"))
    assert HEADLINE == [entry.name for entry in PARTS[1].of(plan)]


def test_float32_is_exact_before_anything_is_checked(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """TF32 is off in every process, also where no runner has switched it off."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    prepare(plan)

    assert (False, False) == (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)


def test_the_plan_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without what must be carried, --plan has status 1 and names it; with it, 0, and the bytes."""
    assert main(["--plan", "--sources", str(tmp_path / "none")]) == 1
    assert "0 files mamba_ssm-*.tar.gz" in capsys.readouterr().out

    carried = dry_gpu.archives(tmp_path / "carried")
    (carried / "wheels").mkdir()
    for name in WHEELS:
        (carried / "wheels" / f"{name.replace('-', '_')}-1.0-py3-none-any.whl").write_bytes(b"12345")
    assert main(["--plan", "--sources", str(carried), "--golden", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "problem" not in said
    assert f"{5 * len(WHEELS)} bytes  wheels" in said
    assert all(f"  {name}\n" in said for name in HEADLINE)


def test_the_tree_and_what_is_carried_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More bytes than travel are a problem; the tree alone is far below."""
    weighed = weigh(tmp_path)
    assert weighed.tree < freight.MOST_BYTES // 2
    monkeypatch.setattr(freight, "MOST_BYTES", weighed.tree + 3)
    (tmp_path / "data").write_bytes(b"1234")
    assert any("are more than" in problem for problem in weigh(tmp_path).problems)


@pytest.mark.parametrize(
    ("wheel", "fits"),
    [
        ("orjson-3.13.0-cp312-cp312-manylinux_2_17_x86_64.manylinux2014_x86_64.whl", True),
        ("orjson-3.13.0-cp311-cp311-manylinux_2_17_x86_64.whl", False),
        ("orjson-3.13.0-cp312-cp312-macosx_11_0_arm64.whl", False),
        ("thing-1.0-cp39-abi3-manylinux_2_28_x86_64.whl", True),
        ("fastapi-0.165.0-py3-none-any.whl", True),
        ("six-1.17.0-py2.py3-none-any.whl", True),
    ],
)
def test_wheels_are_for_the_python_of_the_machine(wheel: str, fits: bool) -> None:
    """Wheels of another Python or system are not carried."""
    assert fits_python(wheel) is fits


def test_the_golden_data_is_copied_so_that_it_can_be_removed(tmp_path: Path) -> None:
    """What is read-only in its place is not in the copy, and nothing else is copied."""
    source = tmp_path / "golden"
    (source / "full").mkdir(parents=True)
    for name in ("manifest.json", "make_weights.py", "full/index.json", "other.npz"):
        (source / name).write_text(name)
        (source / name).chmod(0o400)
    freight.copy_golden(source, tmp_path / "copy")

    copied = [path for path in (tmp_path / "copy").rglob("*") if path.is_file()]
    assert {"manifest.json", "make_weights.py", "index.json"} == {path.name for path in copied}
    assert all(path.stat().st_mode & stat.S_IWUSR for path in copied)


def test_wheels_are_asked_for_by_the_machine_and_our_versions(tmp_path: Path) -> None:
    """pip is told the machine's Python, and the versions of constraints.txt, and to build nothing."""
    archives, wheels = freight.downloads(tmp_path)

    assert {"--only-binary", "3.12", "constraints.txt", *WHEELS} <= set(wheels)
    assert {"--no-binary", "--no-deps", "mamba-ssm==2.3.2.post1", "causal-conv1d==1.7.0"} <= set(archives)


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
    """A failed check stops the timing of its case, one that has not run delays it, others do neither."""
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
    """Every kind of error is caught and keeps its words."""

    def run() -> dict[str, Any]:
        raise error

    found = attempt(entry("models", "raises", run=run))
    assert status == found["status"]
    assert reason in found["reason"]


@pytest.mark.parametrize(("factor", "ok"), [(1.0, True), (1.001, False), (float("nan"), False)])
def test_fused_layers_that_are_off_fail_their_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float, ok: bool
) -> None:
    """The check measures: a thousandth too much in float32, or values that are not finite, are wrong."""
    dry = Plan(dry_run=True, work=tmp_path, results=tmp_path)
    config = dry.config("tiny", num_classes=0)
    vim = random_model(config, dry.device)
    tokens = torch.randn(1, config.seq_len, config.embed_dim)
    monkeypatch.setattr(fused, "encoder", lambda *_: (vim, lambda x: factor * vim.encode(x), tokens))
    checks = [one for one in PARTS[0].of(dry) if one.name == "triton: fused layers, tiny float32, small tile"]

    assert ok is checks[0].run()["ok"]


def test_a_lost_device_ends_the_process_behind_the_entry(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an error that the device does not survive nothing else runs in that process; what is recorded says why."""

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
    """What needs longer than is left does not start."""
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
    """A value that JSON does not have neither breaks the file nor is lost."""
    record = Record(tmp_path / "gpu.json")
    record.put(CHECK, "wrong", {"status": "failed", "relative": float("inf")})

    assert "inf" == Record(record.path).data[CHECK]["wrong"]["relative"]


def test_a_job_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    """A job beyond its limit is killed and says so; who waits for it goes on without."""
    job = jobs.Job("slow", ["sleep", "60"], tmp_path, 0.2)
    with pytest.raises(SkippedError, match="slow failed: took longer"):
        jobs.wait_for(tmp_path, "slow", 30)
    job.stop()


def test_who_waits_for_a_job_does_not_wait_for_ever(tmp_path: Path) -> None:
    """A job that is not ready in time postpones what needs it."""
    job = jobs.Job("slow", ["sleep", "60"], tmp_path, 60)
    with pytest.raises(PostponedError, match="not ready"):
        jobs.wait_for(tmp_path, "slow", 0.1)
    job.stop()


@pytest.mark.parametrize("name", EXTENSIONS)
def test_the_sources_are_for_the_forward_direction_only(tmp_path: Path, name: str) -> None:
    """What is left out is defined as an error, and no file of it is compiled."""
    found = build.unpack(EXTENSIONS[name], dry_gpu.archives(tmp_path / "sources"), tmp_path / "built")

    binding = found[0].read_text()
    assert all(f"void {function}(" in binding for function in EXTENSIONS[name].absent)
    assert not [path.name for path in found if "bwd" in path.name or "update" in path.name]


def test_an_archive_that_is_not_one_is_an_error(tmp_path: Path) -> None:
    """A damaged archive does not pass for sources."""
    (tmp_path / "mamba_ssm-1.tar.gz").write_bytes(b"nothing")
    with pytest.raises(tarfile.TarError):
        build.unpack(EXTENSIONS["selective_scan_cuda"], tmp_path, tmp_path / "built")


def test_the_toolkit_is_where_nvcc_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An nvcc on the path may be a wrapper far from the toolkit: the compiler itself names its folder."""
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
    """The table says what was not measured and why, and has a ratio only where both sides were measured."""
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
