"""Compiled code is cached between processes, and kernels run whatever is wrong with the cache."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import llvmlite
import pytest

from model.jit import compiler
from tests.model.backends.cpu.test_scan import ROOT, run_python

_RUN = """
import logging, torch
logging.basicConfig()
from model.backends.cpu.kernels import trial_kernel
out = torch.zeros(16)
kernel = trial_kernel()
kernel(1, out)
print(int(out.sum()), "kept" if kernel.from_cache else "compiled")
"""


def run(cache: Path, **environment: str) -> str:
    """Compile or load the smallest kernel and run it in a new process: "16 kept" or "16 compiled"."""
    return run_python(_RUN, NUMBA_CACHE_DIR=str(cache), **environment).strip()


@pytest.mark.slow
def test_the_second_process_finds_the_code(tmp_path: Path) -> None:
    """The first process compiles the kernel and the second one loads it from the cache."""
    assert "16 compiled" == run(tmp_path)
    assert "16 kept" == run(tmp_path)


@pytest.mark.slow
def test_without_a_place_to_keep_it_the_code_is_compiled_each_time(tmp_path: Path) -> None:
    """If a file exists in place of the cache directory the code is compiled in every process."""
    (tmp_path / "file").write_text("")

    assert "16 compiled" in run(tmp_path / "file" / "cache")


@pytest.mark.slow
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="names of x86 processors")
def test_a_cache_shared_by_different_processors_serves_each_its_own(tmp_path: Path) -> None:
    """A cache that different processors share has separate code for each of them."""
    old = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma,-avx512f"}

    assert "16 compiled" == run(tmp_path)
    assert "16 compiled" == run(tmp_path, **old)
    assert "16 kept" == run(tmp_path)
    assert "16 kept" == run(tmp_path, **old)


def imported(path: Path) -> set[str]:
    """Full names of the modules that a file imports, and of what it imports from them."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def with_imports(paths: set[Path]) -> set[Path]:
    """The files and every file of `model` that they import, directly or not."""
    found, new = set(paths), set(paths)
    while new:
        names = set[str]().union(*map(imported, new))
        files = {ROOT / f"{name.replace('.', '/')}.py" for name in names if name.startswith("model.")}
        new = {path for path in files if path.is_file()} - found
        found |= new
    return found


def test_the_cache_key_covers_every_file_with_kernels() -> None:
    """Files that compile code with numba or LLVM, and all files whose constants they import, change the key."""
    compiles = {"numba", "llvmlite.ir", "model.jit.compiler", "model.jit.intrinsics", "model.jit.simd.llvm_intrinsic"}
    kernels = {path for path in (ROOT / "model").rglob("*.py") if imported(path) & compiles}
    names = {path.name for path in kernels}

    assert {"kernels.py", "program.py", "resize.py", "cmyk.py", "simd_bytes.py", "simd.py"} <= names
    assert set() == with_imports(kernels) - set(compiler.kernel_sources())


def test_the_cache_key_changes_with_each_file_and_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a process would run code that was compiled from other sources, or by another compiler."""
    source = tmp_path / "model" / "jit" / "one.py"
    source.parent.mkdir(parents=True)
    monkeypatch.setattr(compiler, "MODEL", tmp_path / "model")

    def key(content: str) -> str:
        source.write_text(content)
        compiler.cache_key.cache_clear()
        return compiler.cache_key()

    try:
        first, same, other = key("GROUP = 4"), key("GROUP = 4"), key("GROUP = 8")
        monkeypatch.setattr(llvmlite, "__version__", "0.0")
        versions = key("GROUP = 4")
    finally:
        compiler.cache_key.cache_clear()
    assert first == same
    assert 3 == len({first, other, versions})
