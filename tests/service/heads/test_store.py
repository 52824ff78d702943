"""The directory of heads: a replaced file is used at once by every process that looks at the directory."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from model.heads.head import Head
from service.errors import InvalidHead, UnknownHead
from service.heads.store import Heads, split

pytestmark = pytest.mark.anyio


def head(value: float = 0, model: str = "0" * 12) -> Head:
    """A head whose bias has this value."""
    return Head(np.zeros((2, 4), np.float32), np.full(2, value, np.float32), ("a", "b"), model)


def put(heads: Heads, name: str, one: Head) -> None:
    """Write a head as an upload does."""
    data = one.to_bytes()
    heads.put(name, Head.read(data), data)


async def value(heads: Heads, name: str = "mine") -> float:
    """The value that tells a version from others."""
    return float((await heads.get(name)).head.bias[0])


async def test_another_process_uses_a_replaced_head_at_once(tmp_path: Path) -> None:
    """After `put`, every other object on the directory, old or new, gives the new head."""
    writer, reader = Heads(tmp_path / "new" / "folder"), Heads(tmp_path / "new" / "folder")
    for version in range(20):
        put(writer, "mine", head(version))
        assert (version, version) == (await value(reader), await value(Heads(tmp_path / "new" / "folder")))


async def test_an_unchanged_head_is_read_once(tmp_path: Path) -> None:
    """A head is parsed again only when its file has changed."""
    heads = Heads(tmp_path)
    put(heads, "mine", head())

    assert await heads.get("mine") is await heads.get("mine")


async def test_a_copied_file_is_used(tmp_path: Path) -> None:
    """A file that someone copies into the directory is a head, and is gone when it is removed."""
    heads = Heads(tmp_path)
    (tmp_path / "other.safetensors").write_bytes(head(3).to_bytes())

    assert 3 == await value(heads, "other")
    assert ["other"] == heads.names()
    (tmp_path / "other.safetensors").unlink()
    with pytest.raises(UnknownHead):
        await heads.get("other")
    with pytest.raises(UnknownHead):
        heads.check("other")


async def test_removing(tmp_path: Path) -> None:
    """A removed head is unknown to all; removing it again is an error."""
    heads, reader = Heads(tmp_path), Heads(tmp_path)
    put(heads, "mine", head())
    await reader.get("mine")
    heads.delete("mine")

    assert [] == heads.names()
    with pytest.raises(UnknownHead, match="there is no head 'mine'"):
        await reader.get("mine")
    with pytest.raises(UnknownHead):
        heads.delete("mine")


async def test_heads_of_a_model(tmp_path: Path) -> None:
    """`of` gives the heads of one model, sorted, without damaged ones."""
    heads = Heads(tmp_path)
    put(heads, "b", head(model="1" * 12))
    put(heads, "a", head(model="1" * 12))
    put(heads, "c", head(model="2" * 12))
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")

    assert ["a", "b"] == [one.name for one in await heads.of("1" * 12)]
    assert ["a", "b", "broken", "c"] == heads.names()


async def test_a_damaged_file_is_an_error_of_its_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A damaged file is named in the log at the start and in the error of a request; other heads are served."""
    heads = Heads(tmp_path)
    put(heads, "good", head(1))
    (tmp_path / "bad.safetensors").write_bytes(head().to_bytes()[:-1])
    (tmp_path / "folder.safetensors").mkdir()
    with caplog.at_level(logging.WARNING, "vim.heads"):
        heads.read_all()

    assert 2 == len(caplog.records)
    assert "the head 'bad' of this server cannot be used" in caplog.text
    assert 1 == await value(heads, "good")
    with pytest.raises(InvalidHead, match="not a complete safetensors file"):
        await heads.get("bad")


@pytest.mark.parametrize("name", ["", ".", "..", "../mine", "a/b", ".hidden", "a\0b", "é", "x" * 65, "a\n", "-a"])
async def test_a_name_cannot_leave_the_directory(tmp_path: Path, name: str) -> None:
    """A name that is not one is unknown, for reading, writing and removing."""
    put(Heads(tmp_path), "mine", head())
    heads = Heads(tmp_path / "heads")
    data = head().to_bytes()
    for work in (heads.check, heads.content, heads.delete, lambda one: heads.put(one, head(), data)):
        with pytest.raises(UnknownHead):
            work(name)

    assert ["mine.safetensors"] == os.listdir(tmp_path)


async def test_without_a_directory_there_are_no_heads() -> None:
    """Without VIM_HEADS_DIR every head is unknown, and the error names the setting."""
    heads = Heads(None)
    heads.read_all()

    assert (False, []) == (heads.enabled, heads.names())
    with pytest.raises(UnknownHead, match="VIM_HEADS_DIR"):
        await heads.get("mine")


def test_a_failed_write_leaves_the_old_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the disk is full, the old file stays, and no other file remains."""
    heads = Heads(tmp_path)
    put(heads, "mine", head(1))
    before = heads.content("mine")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        put(heads, "mine", head(2))

    assert before == heads.content("mine")
    assert ["mine.safetensors"] == os.listdir(tmp_path)


async def test_readers_never_see_half_a_file(tmp_path: Path) -> None:
    """While a head is replaced again and again, every read gives one whole version."""
    heads, reader = Heads(tmp_path), Heads(tmp_path)
    put(heads, "mine", head(0))
    done = threading.Event()

    def replace() -> None:
        for version in range(40):
            put(heads, "mine", head(version))
        done.set()

    thread = threading.Thread(target=replace)
    thread.start()
    seen = []
    while not done.is_set():
        found = (await reader.get("mine")).head
        assert found.bias[0] == found.bias[1]
        seen.append(float(found.bias[0]))
    thread.join()

    assert seen == sorted(seen)
    assert 39 == await value(reader)


@pytest.mark.parametrize(
    ("name", "parts"),
    [("demo", ("demo", None)), ("demo~mine", ("demo", "mine")), ("demo~", ("demo", "")), ("a~b~c", ("a", "b~c"))],
)
def test_names_of_models_with_heads(name: str, parts: tuple[str, str | None]) -> None:
    """NAME~HEAD has two parts; a name without ~ has no head."""
    assert parts == split(name)
