"""The server of a user with neither HOME nor a passwd entry starts, logs one line, and leaves no files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.devices.worker import _cache_dir
from service.settings import Settings
from tests.tiny import photo

ROOT = Path(__file__).resolve().parents[3]
# Like an arbitrary user of a container, independent of the user who runs the tests.
_HOMELESS = """
import pwd, sys
def unknown(uid):
    raise KeyError(uid)
pwd.getpwuid = unknown
sys.argv[0] = "service"
import service.__main__
sys.exit(service.__main__.main())
"""


def test_without_a_directory_downloads_go_to_a_temporary_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads go to VIM_CACHE_DIR; without it and without a home each device process has a new directory."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    nowhere = Settings().model_copy(update={"cache_dir": None})

    assert tmp_path / "mine" == _cache_dir(Settings(cache_dir=tmp_path / "mine"))
    assert {tmp_path} == {_cache_dir(nowhere).parent for _ in range(2)}
    assert 2 == len(list(tmp_path.iterdir()))


@pytest.mark.slow
def test_a_user_without_a_home_gets_answers_and_one_line(tiny_model: Path, tmp_path: Path) -> None:
    """The line names VIM_CACHE_DIR; no directory called ~ is made."""
    (tmp_path / "a.jpg").write_bytes(photo(0))
    clean = {name: text for name, text in os.environ.items() if not name.startswith("VIM_")}
    clean = {name: text for name, text in clean.items() if name not in ("HOME", "NUMBA_CACHE_DIR", "PYTHONPATH")}
    done = subprocess.run(
        [sys.executable, "-c", _HOMELESS, "classify", "a.jpg"],
        cwd=tmp_path,
        env=clean | {"PYTHONPATH": str(ROOT), "VIM_MODEL": str(tiny_model), "VIM_DEVICE": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert 0 == done.returncode, done.stderr
    assert done.stdout.startswith("FILE")
    assert 1 == done.stderr.count("\n")
    assert "set VIM_CACHE_DIR to a directory" in done.stderr
    assert ["a.jpg"] == [path.name for path in tmp_path.iterdir()]
