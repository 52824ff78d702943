"""The image-search example, from a folder to the contact sheet, against a real server with the demo model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.e2e.server import ROOT, serving

pytest.importorskip("qdrant_client", reason="pip install '.[examples]'")
from examples.image_search import main

SAMPLES = ROOT / "examples" / "images"


def test_a_picture_finds_itself_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The query image comes first, then the others by falling cosine; other files are listed and left out."""
    folder = tmp_path / "pictures"
    shutil.copytree(SAMPLES, folder)
    (folder / "broken.jpg").write_bytes(b"no image")
    query, sheet = SAMPLES / "trousers.png", tmp_path / "sheet.png"
    with serving(tmp_path) as server:
        main([str(folder), str(query), "--url", server.url, "--count", "4", "--out", str(sheet)])
    printed = capsys.readouterr()
    lines = [line.split() for line in printed.out.splitlines()]

    assert ("1.000", str(folder / "trousers.png")) == tuple(lines[0])
    assert sorted((float(cosine) for cosine, _ in lines), reverse=True) == [float(cosine) for cosine, _ in lines]
    assert 4 == len(lines)
    assert "broken.jpg: 415 unsupported_image" in printed.err
    with Image.open(sheet) as drawn:
        assert drawn.width > drawn.height
