"""Folders are looked at again and again; what is new or has changed is loaded once its files stay the same."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from service.errors import LoadFailed
from service.registry.poll import Changes, Look, Seen, look, poll
from service.registry.sources import Sources

pytestmark = pytest.mark.anyio


def seen(**versions: str) -> Look:
    """A look with these versions; the text after a dash stands for the state of the files."""
    found = {}
    for name, text in versions.items():
        version, _, state = text.partition("-")
        found[name] = Seen(version, ((state, 0, 0),))
    return found


def test_a_change_counts_once_it_is_the_same_in_two_looks() -> None:
    """A new version is loaded when its files no longer change, and only once."""
    changes = Changes(seen(a="1"), "a")

    assert ([], []) == changes.next(seen(a="2-half"))
    assert ([], []) == changes.next(seen(a="2-whole"))
    assert (["a"], []) == changes.next(seen(a="2-whole"))
    assert ([], []) == changes.next(seen(a="2-whole"))


def test_changed_files_of_the_same_version_are_a_change() -> None:
    """Files that are replaced in place are loaded too, and so is a former version that is the newest again."""
    changes = Changes(seen(a="1-old"), "a")
    changes.next(seen(a="1-new"))
    assert (["a"], []) == changes.next(seen(a="1-new"))
    changes.next(seen(a="1-old"))
    assert (["a"], []) == changes.next(seen(a="1-old"))


def test_new_models_are_loaded_and_missing_ones_unloaded() -> None:
    """A new folder is a new model; a model is unloaded when its folder is missing twice, but never the default."""
    changes = Changes(seen(a="1", b="1"), "a")
    changes.next(seen(c="1"))

    assert (["c"], ["b"]) == changes.next(seen(c="1"))
    assert ([], []) == changes.next(seen(c="1"))


def test_a_repository_that_cannot_be_read_changes_nothing() -> None:
    """A look without any model is ignored."""
    changes = Changes(seen(a="1", b="1"), "a")

    assert ([], []) == changes.next({})
    assert ([], []) == changes.next({})
    assert ([], []) == changes.next(seen(a="1", b="1"))


class Recorder:
    """Records what is loaded and unloaded; the first load fails."""

    def __init__(self) -> None:
        self.calls: asyncio.Queue[str] = asyncio.Queue()
        self.failed = False

    async def load(self, name: str, version: str | None = None) -> None:
        """Record it."""
        self.calls.put_nowait(f"load {name}")
        if not self.failed:
            self.failed = True
            raise LoadFailed("broken")

    async def unload(self, name: str) -> None:
        """Record it."""
        self.calls.put_nowait(f"unload {name}")


async def test_folders_on_disk_are_followed(tmp_path: Path) -> None:
    """A failed load is logged and not repeated; later changes are acted on."""
    for name in ("a", "b"):
        (tmp_path / name / "1").mkdir(parents=True)
        (tmp_path / name / "1" / "model.safetensors").write_text("x")
    sources, control = Sources({}, tmp_path), Recorder()
    task = asyncio.create_task(poll(sources, control, look(sources), 0.01))
    async with asyncio.timeout(10):
        (tmp_path / "b" / "2").mkdir()
        (tmp_path / "b" / "2" / "model.safetensors").write_text("y")
        assert "load b" == await control.calls.get()
        (tmp_path / "a" / "1" / "model.safetensors").write_text("changed")
        assert "load a" == await control.calls.get()
        for file in ("1/model.safetensors", "2/model.safetensors"):
            (tmp_path / "b" / file).unlink()
        assert "unload b" == await control.calls.get()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert control.calls.empty()
