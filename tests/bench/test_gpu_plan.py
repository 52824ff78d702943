"""The GPU benchmark's plan for a lent machine: its parts, their seconds, and the files that are sent."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest
import torch

from bench.gpu import checks, faults, freight, parts
from bench.gpu.__main__ import main
from bench.gpu.cases import Plan, prepare
from bench.gpu.entry import CHECK
from bench.gpu.freight import WHEELS, fits_python, weigh
from bench.gpu.parts import PARTS, TOTAL_S
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
    """The parts have this order, and their total time is at most that of one call."""
    expected = ["check", "headline", "kernels", "sweep", "models", "service"]
    assert expected == [part.name for part in PARTS]
    assert sum(part.seconds for part in PARTS) <= TOTAL_S == 480


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_the_entries_of_a_part_are_few_enough_for_its_seconds(plan: Plan, part: parts.Part) -> None:
    """The expected seconds of a part's entries fit, names are unique, and each single entry fits."""
    entries = part.of(plan)
    assert part.warm_seconds + sum(entry.seconds for entry in entries) <= part.seconds
    assert len({entry.name for entry in entries}) == len(entries)
    assert {entry.part for entry in entries} <= {part.name, "facts", "profile"}


def test_the_headline_is_what_was_asked_for(plan: Plan) -> None:
    """The headline times tiny at batches 64 and 1: ours, compiled DeiT-tiny, and the reference in both precisions."""
    assert names(plan, "headline") == HEADLINE


def test_every_kernel_is_timed_alone_at_every_width_and_batch(plan: Plan) -> None:
    """Each of the five kernels is timed at three widths and four batches."""
    wanted = {
        f"{kernel}, {width}, batch {images}"
        for kernel in ("first_norm", "in_proj", "project", "scan", "out_project")
        for width in ("tiny", "small", "base")
        for images in (1, 8, 64, 128)
    }
    assert wanted <= set(names(plan, "kernels"))


def test_what_is_timed_is_checked_in_every_way(plan: Plan) -> None:
    """Checks cover three widths, two dtypes, tiles of few and many rows, pieces, cuBLAS, and the timed batch."""
    wanted = {
        f"triton: fused layers, {width} {dtype}, {way}"
        for width in ("tiny", "small", "base")
        for dtype in ("float16", "float32")
        for way in (*checks.WAYS, "batch of 64")
    }
    assert wanted <= set(names(plan, CHECK))


def test_a_real_run_has_no_faults(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Faults are installed in a dry run only, even if the environment sets them."""
    monkeypatch.setenv(faults.VARIABLE, "raise:RuntimeError headline")
    dry = Plan(dry_run=True, work=plan.work, results=plan.results)
    with pytest.raises(RuntimeError, match="illegal memory"):
        PARTS[1].of(dry)[0].run()

    monkeypatch.setattr(faults, "applied", lambda _: pytest.fail("a fault in a real run"))
    assert HEADLINE == [entry.name for entry in PARTS[1].of(plan)]


def test_float32_is_exact_before_anything_is_checked(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """TF32 is off in every process, also before a runner is created."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    prepare(plan)

    assert (False, False) == (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)


def test_the_plan_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """If a file to send is missing, --plan names it with status 1; otherwise it prints the bytes with status 0."""
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
    """More bytes than the limit are an error; the tree alone is far below it."""
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
    """Only wheels for the machine's Python and system are accepted."""
    assert fits_python(wheel) is fits


def test_the_golden_data_is_copied_so_that_it_can_be_removed(tmp_path: Path) -> None:
    """Read-only files are writable in the copy, and only the needed files are copied."""
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
    """pip gets the machine's Python and the versions of constraints.txt, and builds no wheel."""
    archives, wheels = freight.downloads(tmp_path)

    assert {"--only-binary", "3.12", "constraints.txt", *WHEELS} <= set(wheels)
    assert {"--no-binary", "--no-deps", "mamba-ssm==2.3.2.post1", "causal-conv1d==1.7.0"} <= set(archives)
