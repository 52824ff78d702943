"""What commands write: a table, JSON lines, embeddings."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from service.cli.backend import Ask, Classified, CommandError, Embedded, Failed, Model
from service.cli.output import Embeddings, Lines, Table

TINY = Model("tiny", "0123456789ab")
ROW = np.arange(3, dtype=np.float32)


def test_the_table_is_aligned_and_escapes_what_could_mislead() -> None:
    """The table shows a name on its first line only, and escapes control characters of names and labels."""
    lines: list[str] = []
    table = Table(["a.jpg", "evil\x1b[2J.jpg"], lines.append)
    two = [{"index": 3, "label": "cat", "score": 0.75}, {"index": 1, "label": "d\nog", "score": 0.25}]

    table.add("a.jpg", Classified(TINY, two))
    table.add("evil\x1b[2J.jpg", Classified(TINY, two[:1]))

    assert [
        "FILE             SCORE   CLASS",
        "a.jpg            0.7500  cat (3)",
        "                 0.2500  d\\nog (1)",
        "evil\\x1b[2J.jpg  0.7500  cat (3)",
    ] == lines


def test_json_lines_keep_names_that_are_no_text() -> None:
    """A file name that is not UTF-8 can be recovered from its JSON line."""
    lines: list[str] = []
    Lines(lines.append).add(os.fsdecode(b"\xff.jpg"), Failed("unreadable", "gone"))

    assert b"\xff.jpg" == os.fsencode(json.loads(lines[0])["file"])


def test_embeddings_of_two_models_are_not_mixed(tmp_path: Path) -> None:
    """When the model changes during a run, the command stops and keeps the embeddings of the first model."""
    lines: list[str] = []
    sink = Embeddings(tmp_path / "e.npy", Ask("embed"), lines.append, as_json=True)
    sink.add("a\nb.jpg", Embedded(TINY, ROW))
    sink.add("bad.jpg", Failed("unreadable", "gone"))

    with pytest.raises(CommandError, match="the model changed from tiny"):
        sink.add("c.jpg", Embedded(Model("tiny", "f" * 12), ROW))
    sink.finish()

    assert (1, 3) == np.load(tmp_path / "e.npy").shape
    assert "a\\nb.jpg\n" == (tmp_path / "e.names.txt").read_text()
    report = json.loads(lines[0])
    assert [1, 3] == report["shape"]
    assert {"name": "tiny", "fingerprint": "0123456789ab"} == report["model"]
    assert ["bad.jpg"] == [one["file"] for one in report["failed"]]


def test_nothing_is_written_when_every_image_failed(tmp_path: Path) -> None:
    """When every image failed, nothing is written and an existing file stays unchanged."""
    (tmp_path / "e.npy").write_bytes(b"earlier")
    lines: list[str] = []
    sink = Embeddings(tmp_path / "e.npy", Ask("embed"), lines.append, as_json=False)
    sink.add("bad.jpg", Failed("unreadable", "gone"))
    sink.finish()

    assert [] == lines
    assert [tmp_path / "e.npy"] == list(tmp_path.iterdir())
    assert b"earlier" == (tmp_path / "e.npy").read_bytes()
