"""What the tests of the command line share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import photo


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two photographs, one in a subfolder, a text file, a broken image, and files to skip."""
    (tmp_path / "b").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "z.JPG").write_bytes(photo(1))
    (tmp_path / "b" / "y.png").write_bytes(photo(2, kind="PNG"))
    (tmp_path / "a.jpeg").write_bytes(b"\xff\xd8\xff broken")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "._a.jpg").write_text("what a file manager leaves")
    (tmp_path / ".hidden" / "x.png").write_bytes(photo(3, kind="PNG"))
    return tmp_path
