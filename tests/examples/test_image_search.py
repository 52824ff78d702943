"""The image-search example, from a folder to the contact sheet, against a real server with the demo model."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.e2e.server import ROOT, Server, serving
from tests.tiny import write_tiny_model

pytest.importorskip("qdrant_client", reason="pip install '.[examples]'")
from qdrant_client import QdrantClient
from vim_client import Client

from examples.image_search import index, main

SAMPLES = ROOT / "examples" / "images"
GUIDE = ROOT / "docs" / "guide" / "image-search.md"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the demo model, which is the default, and another one."""
    folder = tmp_path_factory.mktemp("server")
    with serving(folder, models=f"demo=demo,tiny={write_tiny_model(folder / 'tiny')}") as server:
        yield server


def test_a_picture_finds_itself_first(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The query image comes first, then the others by falling cosine; other files are listed and left out."""
    folder = tmp_path / "pictures"
    shutil.copytree(SAMPLES, folder)
    (folder / "broken.jpg").write_bytes(b"no image")
    query, sheet = SAMPLES / "trousers.png", tmp_path / "sheet.png"
    main([str(folder), str(query), "--url", server.url, "--count", "4", "--out", str(sheet)])
    printed = capsys.readouterr()
    with Client(server.url) as client:
        database = QdrantClient(":memory:")
        (folder / "broken.jpg").unlink()
        collections = [index(client, folder, database) for _ in range(2)]
    again = capsys.readouterr().err
    lines = [line.split() for line in printed.out.splitlines()]

    assert ("1.000", str(folder / "trousers.png")) == tuple(lines[0])
    assert sorted((float(cosine) for cosine, _ in lines), reverse=True) == [float(cosine) for cosine, _ in lines]
    assert 4 == len(lines)
    assert "broken.jpg: 415 unsupported_image" in printed.err
    assert collections[0] == collections[1]
    assert len(list(folder.glob("*.png"))) == database.count(collections[0]).count
    assert "0image" in again.splitlines()[-1], "the second time nothing is embedded"
    with Image.open(sheet) as drawn:
        assert drawn.width > drawn.height


def test_one_of_several_models_can_be_named(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--model` is used for the folder and for the query; an unknown model ends the program with the known names."""
    shutil.copytree(SAMPLES, tmp_path / "pictures")
    arguments = [str(tmp_path / "pictures"), str(SAMPLES / "trousers.png"), "--count", "1"]
    main([*arguments, "--url", server.url, "--model", "tiny"])
    with pytest.raises(SystemExit, match="404 model_not_found: .*'demo', 'tiny'"):
        main([*arguments, "--url", server.url, "--model", "absent"])

    assert "1.000" == capsys.readouterr().out.split()[0]


def test_the_ten_lines_of_the_guide(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program in docs/guide/image-search.md finds the picture that is the query."""
    (program,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    shutil.copytree(SAMPLES, tmp_path / "photos")
    shutil.copy(SAMPLES / "trousers.png", tmp_path / "query.jpg")
    monkeypatch.chdir(tmp_path)
    exec(compile(program.replace("http://localhost:8000", server.url), str(GUIDE), "exec"), {})

    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1.000  photos/trousers.png"
    assert len(lines) == 9
