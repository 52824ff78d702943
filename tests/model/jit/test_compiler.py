"""Compiled code is kept between processes, and whatever is wrong with the place where it is kept, the kernels run."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba
import pytest

from model.jit import compiler
from tests.model.backends.cpu.test_scan import run_python

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
    """Compile or fetch the smallest kernel and run it in a fresh process: "16 kept" or "16 compiled"."""
    return run_python(_RUN, NUMBA_CACHE_DIR=str(cache), **environment).strip()


def test_the_second_process_finds_the_code(tmp_path: Path) -> None:
    """Start-up pays for the compiler once."""
    assert "16 compiled" == run(tmp_path)
    assert "16 kept" == run(tmp_path)


def test_without_a_place_to_keep_it_the_code_is_compiled_each_time(tmp_path: Path) -> None:
    """Here a file stands where the directory should be."""
    (tmp_path / "file").write_text("")

    assert "16 compiled" in run(tmp_path / "file" / "cache")


def test_damaged_code_is_compiled_anew_and_said(tmp_path: Path) -> None:
    """A full disk may leave half a file."""
    run(tmp_path)
    for path in tmp_path.rglob("*.nbc"):
        path.write_bytes(path.read_bytes()[:100])
    said = run(tmp_path)

    assert "compiled code cannot be kept or read" in said
    assert "16 compiled" in said


def test_threads_that_compile_at_once_keep_each_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The place is a setting of numba's, which threads share: none may find another's, or none at all."""

    def cache_directory(_kernel: object) -> str:
        time.sleep(0.02)
        config: Any = numba.config
        return str(config.CACHE_DIR)

    monkeypatch.setattr(compiler, "cfunc", lambda *_, **__: cache_directory)
    names = "abcdefgh"
    with ThreadPoolExecutor(len(names)) as threads:
        found = list(threads.map(lambda name: compiler.compile_kernel(print, tmp_path / name), names))

    assert [Path(one).parent.name for one in found] == [*names]


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="names of x86 processors")
def test_a_cache_shared_by_different_processors_serves_each_its_own(tmp_path: Path) -> None:
    """Code for AVX-512 found by an older machine would end the process."""
    old = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma,-avx512f"}

    assert "16 compiled" == run(tmp_path)
    assert "16 compiled" == run(tmp_path, **old)
    assert "16 kept" == run(tmp_path)
    assert "16 kept" == run(tmp_path, **old)
