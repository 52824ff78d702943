"""Where the parent keeps what its children count. Its work is shown by tests/e2e/test_http_workers.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from service.errors import SettingsError
from service.server.prefork import parent as module


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where memory is, as far as the parent knows."""
    monkeypatch.setattr(module, "MEMORY", str(tmp_path))
    return tmp_path


def test_the_directory_is_gone_afterwards_and_what_a_killed_service_left_before(place: Path) -> None:
    """Not what another one still uses, or has just made."""
    old, fresh = place / f"{module.PREFIX}old", place / f"{module.PREFIX}fresh"
    for left in (old, fresh):
        left.mkdir()
        (left / "counter_http-1.db").touch()
    os.utime(old, (0, 0))
    with module._directory() as used:
        os.utime(used, (0, 0))
        with module._directory() as second:
            assert sorted([used, second, str(fresh)]) == sorted(map(str, place.iterdir()))

    assert [fresh] == list(place.iterdir())


def test_without_any_place_the_settings_are_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A root file system that cannot be written needs one mount, and the message says so."""

    def nowhere() -> str:
        raise FileNotFoundError("no usable temporary directory")

    monkeypatch.setattr(module, "MEMORY", str(tmp_path / "none"))
    monkeypatch.setattr("tempfile.gettempdir", nowhere)

    with pytest.raises(SettingsError, match="TMPDIR"), module._directory():
        pass
