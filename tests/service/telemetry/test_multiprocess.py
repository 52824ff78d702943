"""The directory of the shared metrics of several processes. tests/e2e/test_http_workers.py uses real processes."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from service.errors import SettingsError
from service.telemetry import multiprocess as module


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of the file system in memory."""
    monkeypatch.setattr(module, "MEMORY", str(tmp_path))
    return tmp_path


def test_the_directory_is_gone_afterwards_and_what_a_killed_service_left_before(place: Path) -> None:
    """The directory of a killed service is removed; one that a service uses or has just created is kept."""
    old, fresh = place / f"{module.PREFIX}old", place / f"{module.PREFIX}fresh"
    for left in (old, fresh):
        left.mkdir()
        (left / "counter_http-1.db").touch()
    os.utime(old, (0, 0))
    with module.shared_directory() as used:
        os.utime(used, (0, 0))
        with module.shared_directory() as second:
            assert sorted([used, second, str(fresh)]) == sorted(map(str, place.iterdir()))

    assert [fresh] == list(place.iterdir())


def test_a_file_system_in_memory_without_room_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: Path
) -> None:
    """A file system in memory without room is not used, because a write to a mapped file would kill the process."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(elsewhere))
    sizes = {str(place): 4}
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=sizes.get(path, 3000), f_frsize=4096))

    with module.shared_directory(2) as directory:
        assert elsewhere == Path(directory).parent
    with pytest.raises(SettingsError, match="needs 16 MiB for counters"), module.shared_directory(16):
        pass
    with pytest.raises(SettingsError, match="needs 12 MiB for counters"), module.shared_directory(2, models=64):
        pass


def test_without_any_place_the_settings_are_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a writable folder the error says how to provide one."""

    def nowhere() -> str:
        raise FileNotFoundError("no usable temporary directory")

    monkeypatch.setattr(module, "MEMORY", str(tmp_path / "none"))
    monkeypatch.setattr("tempfile.gettempdir", nowhere)

    with pytest.raises(SettingsError, match="TMPDIR"), module.shared_directory():
        pass
