"""Building the CUDA extensions: the compiler wrapper, the checks before it, and what `make` would run."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.deploy.dockerfile import ROOT

# As torch and the two setup.py together call it; the argument with a space must stay one argument.
CALL = ["-c", "a.cu", "-gencode", "arch=compute_53,code=sm_53", "-O3", "-gencode=arch=compute_90,code=sm_90", "-DX=a b"]


@pytest.fixture
def cuda_home(tmp_path: Path) -> Path:
    """A toolkit whose nvcc prints its arguments, one on each line, and has version 13.0."""
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "release 13.0, V13.0.88" || printf "%s\\n" "$@"\n')
    nvcc.chmod(0o755)
    return tmp_path


def wrapper(cuda_home: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Call deploy/docker/nvcc."""
    command = ["sh", str(ROOT / "deploy/docker/nvcc"), *arguments]
    environ = {"PATH": os.environ["PATH"], "CUDA_HOME": str(cuda_home)} | environ
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("asked", "codes"),
    [
        ("8.0;9.0", ["arch=compute_80,code=sm_80", "arch=compute_90,code=sm_90"]),
        ("9.0a", ["arch=compute_90a,code=sm_90a"]),
        ("12.0+PTX", ["arch=compute_120,code=sm_120", "arch=compute_120,code=compute_120"]),
    ],
)
def test_compiles_for_what_is_asked_alone(cuda_home: Path, asked: str, codes: list[str]) -> None:
    """The wrapper replaces the architectures of a call by the named ones and keeps all other arguments."""
    said = wrapper(cuda_home, *CALL, TORCH_CUDA_ARCH_LIST=asked).stdout.splitlines()
    assert said[:4] == ["-c", "a.cu", "-O3", "-DX=a b"]
    assert said[4:] == [word for code in codes for word in ("-gencode", code)]


def test_leaves_other_calls_alone(cuda_home: Path) -> None:
    """The wrapper passes on a call without architectures, such as `nvcc --version`."""
    assert "release 13.0" in wrapper(cuda_home, "--version").stdout


def test_asks_for_an_architecture(cuda_home: Path) -> None:
    """Without TORCH_CUDA_ARCH_LIST the wrapper fails and names the variable."""
    run = wrapper(cuda_home, *CALL)
    assert run.returncode != 0
    assert "TORCH_CUDA_ARCH_LIST" in run.stderr


@pytest.fixture
def kernels() -> ModuleType:
    """The module deploy/docker/kernels.py, which is a script."""
    spec = importlib.util.spec_from_file_location("kernels", ROOT / "deploy/docker/kernels.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_cpu_torch_is_named_as_such(kernels: ModuleType, cuda_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU build of torch is reported as such; upstream fails with `InvalidVersion: 'None'`."""
    monkeypatch.setattr(torch.version, "cuda", None)
    (problem,) = kernels.before(cuda_home)
    assert "no CUDA" in problem
    assert "make clean install-cuda" in problem


def test_a_missing_compiler_is_named(kernels: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing nvcc is reported with its path; upstream fails with a NameError."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    problems = kernels.before(tmp_path)
    assert f"no {tmp_path}/bin/nvcc: install the CUDA 13.0 toolkit and set CUDA_HOME" in problems[0]


@pytest.mark.parametrize(("cuda", "fits"), [("13.0", True), ("13.2", True), ("12.9", False)])
def test_the_compiler_must_be_of_torchs_major_version(
    kernels: ModuleType, cuda_home: Path, monkeypatch: pytest.MonkeyPatch, cuda: str, fits: bool
) -> None:
    """A compiler of another CUDA major version than torch's is reported."""
    monkeypatch.setattr(torch.version, "cuda", cuda)
    problems = [problem for problem in kernels.before(cuda_home) if "nvcc" in problem and "ninja" not in problem]
    assert (problems == []) is fits


def test_extensions_that_do_not_import_are_named(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each extension that cannot be imported is reported with the reason."""
    monkeypatch.setattr(kernels, "EXTENSIONS", ("selective_scan_nowhere",))
    (problem,) = kernels.after("9.0")
    assert problem.startswith("cannot import selective_scan_nowhere: No module named")


def test_an_extension_for_otherarchitectures_is_refused(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """An extension that is compiled for other architectures than asked is reported."""
    monkeypatch.setattr(kernels, "EXTENSIONS", ("json",))
    monkeypatch.setattr(kernels, "compiled_architectures", lambda library: {"sm_80", "sm_90"})
    assert kernels.after("8.0;9.0") == []
    (problem,) = kernels.after("9.0+PTX")
    assert problem == "json is compiled for ['sm_80', 'sm_90'], not for ['sm_90']"


def dry_run(*arguments: str) -> str:
    """The commands that `make` would run from the beginning."""
    command = ["make", "--no-print-directory", "--dry-run", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_make_install_cuda_builds_as_the_image_does() -> None:
    """`make install-cuda` builds the extensions with the options and checks of the Dockerfile."""
    said = dry_run("install-cuda", "CUDA_ARCHS=9.0")
    assert said.splitlines()[0].endswith("sh tools/install/run.sh cuda")
    before, built, after = (
        said.index(text) for text in ("kernels.py before", "mamba-ssm causal-conv1d", "kernels.py after")
    )
    assert before < built < after
    dockerfile = (ROOT / "Dockerfile").read_text()
    for text in (
        "MAMBA_FORCE_BUILD=TRUE",
        "MAMBA_KEEP_CUDA_BUILD=TRUE",
        "CAUSAL_CONV1D_FORCE_BUILD=TRUE",
        "--no-deps --no-build-isolation",
        "--no-binary mamba-ssm,causal-conv1d",
        "PYTORCH_NVCC=",
        "TORCH_CUDA_ARCH_LIST=",
    ):
        assert text in said
        assert text in dockerfile
