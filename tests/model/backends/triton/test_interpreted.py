"""Triton's kernels without a GPU: the interpreter's results, in a separate process."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.backends.triton import scan as backend
from model.backends.triton import support as triton_support
from model.scan import NAMES, names_on

ROOT = Path(__file__).resolve().parents[4]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed (it has wheels for Linux only)"
)


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("file", ["interpreted_layer.py", "interpreted_model.py"])
def test_kernels_in_the_interpreter(file: str) -> None:
    """Every test of this folder's FILE passes; the variable must be set before triton is imported."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/model/backends/triton/{file}"]
    environ = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)

    assert 0 == done.returncode, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def test_triton_comes_first_and_not_on_a_cpu() -> None:
    """`auto` tries triton before all others, and gives the reason where it is not available."""
    assert "triton" == NAMES[0]
    assert "triton" not in names_on(CPU)
    assert "CUDA" in str(backend.unavailable(CPU))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Simulate a torch with an H100, on a machine with triton and a compiler."""
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(importlib, "import_module", lambda name: object())
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    return monkeypatch


def test_runs_on_a_gpu_with_all_it_needs(machine: pytest.MonkeyPatch) -> None:
    """On a complete installation with a GPU the backend is available."""
    assert backend.unavailable(CUDA) is None


def broken_import(name: str) -> object:
    """Raise the error of an installation for another Python."""
    raise OSError("libtriton.so: undefined symbol")


@pytest.mark.parametrize(
    ("place", "name", "value", "reason"),
    [
        (torch.version, "hip", "7.0", "ROCm"),
        (torch.cuda, "get_device_capability", lambda device: (7, 5), "compute capability 7.5"),
        (importlib.util, "find_spec", lambda name: None, "triton is not installed"),
        (shutil, "which", lambda name: None, "install gcc"),
        (importlib, "import_module", broken_import, "cannot be imported: libtriton.so: undefined symbol"),
    ],
)
def test_what_is_missing_is_named(
    machine: pytest.MonkeyPatch, place: object, name: str, value: object, reason: str
) -> None:
    """The reason names what is missing, and how to fix it where possible."""
    machine.setattr(place, name, value)

    assert reason in str(backend.unavailable(CUDA))


def test_the_interpreter_never_serves(machine: pytest.MonkeyPatch) -> None:
    """If TRITON_INTERPRET is set the backend is unavailable, because requests would take minutes."""
    machine.setenv("TRITON_INTERPRET", "1")

    assert "TRITON_INTERPRET is set" in str(backend.unavailable(CUDA))


def test_compiled_kernels_are_kept_below_the_cache_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Compiled kernels are cached below the given directory, unless TRITON_CACHE_DIR is set."""
    monkeypatch.setenv("TRITON_CACHE_DIR", "")  # so that the test leaves no trace
    monkeypatch.delenv("TRITON_CACHE_DIR")
    triton_support.use_cache(tmp_path)
    assert str(tmp_path / "triton") == os.environ["TRITON_CACHE_DIR"]

    monkeypatch.setenv("TRITON_CACHE_DIR", "/elsewhere")
    triton_support.use_cache(tmp_path)
    assert "/elsewhere" == os.environ["TRITON_CACHE_DIR"]
