"""The commands of the documentation that follow `<!-- run -->` work as they are written."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.server import ROOT, Server, serving
from tests.service.images.bmff_files import sample
from tests.tiny import photo

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")

_COMMAND = re.compile(r"<!-- run -->\n```sh\n(.*?)```", re.DOTALL)
EXAMPLES = [
    (path.stem, command)
    for path in sorted((ROOT / "docs").rglob("*.md"))
    for command in _COMMAND.findall(path.read_text(encoding="utf-8"))
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the demo model."""
    with serving(tmp_path_factory.mktemp("server"), model="demo") as server:
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the commands name."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "photos").mkdir()
    for number, name in enumerate(("photo.jpg", "one.jpg", "two.jpg", "photos/1.jpg", "photos/2.jpg")):
        (folder / name).write_bytes(photo(number))
    (folder / "photo.heic").write_bytes(sample("plain.heic"))
    return folder


def test_there_are_examples() -> None:
    """The pattern finds the commands of the guide."""
    assert {"sending-images", "image-formats", "compatible-clients"} <= {page for page, _ in EXAMPLES}


@pytest.mark.parametrize(("page", "command"), EXAMPLES)
def test_the_command_works(server: Server, folder: Path, page: str, command: str) -> None:
    """The answer is JSON without an error."""
    address = server.url.removeprefix("http://")
    program = command.replace("localhost:8000", address).replace("curl ", "curl --fail-with-body -sS ")
    done = subprocess.run(["bash", "-ec", program], cwd=folder, capture_output=True, text=True, timeout=120)

    assert done.returncode == 0, done.stdout + done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert answers
    assert "error" not in done.stdout
