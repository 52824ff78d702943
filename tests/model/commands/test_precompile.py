"""`python -m model.commands.precompile`: the kernels of the shipped and the released models, for a level of CPUs."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from model.commands import precompile
from model.jit.levels import LEVELS, Level

KERNELS = {"apart", "conv", "convert", "multiply", "norm", "resize", "scan", "together", "trial"}
NEEDS_X86 = pytest.mark.skipif(platform.machine() not in precompile.MACHINES, reason="levels are of x86 processors")


@NEEDS_X86
@pytest.mark.slow
def test_every_kernel_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each kernel once, and the scan once for every state size and width of a model."""
    monkeypatch.setattr(precompile, "LEVELS", LEVELS[-1:])
    assert 0 == precompile.main(str(tmp_path))
    names = [path.name.partition("-")[0] for path in tmp_path.glob(f"{LEVELS[-1].name}/*/*.code")]
    scans = {(one.d_state, rank) for one in precompile._configs() for rank in (0, one.dt_rank)}

    assert set(names) == KERNELS
    assert len(scans) == names.count("scan")
    assert f"{LEVELS[-1].name}  {len(names)} kernels\n" == capsys.readouterr().out


@NEEDS_X86
def test_a_level_that_cannot_be_compiled_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command ends with 1 and says what the compiler said."""
    (tmp_path / "numba.py").write_text("raise ImportError('no compiler')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(precompile, "LEVELS", [Level("x86-64-v9", "x86-64", ())])

    assert 1 == precompile.main(str(tmp_path / "out"))
    said = capsys.readouterr().err
    assert "cannot be compiled for x86-64-v9" in said
    assert "no compiler" in said


def test_other_processors_have_no_levels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On aarch64 there is nothing to do: each machine compiles for itself, and the directory is empty."""
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")

    assert {} == precompile.precompile(tmp_path / "out")
    assert [] == [*(tmp_path / "out").iterdir()]
