"""Machine code on disk is used only if it is whole and made for this kernel, source, version and processor."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.jit import kept_code
from model.preprocessing.compiled.cmyk import CmykToRgb
from model.preprocessing.compiled.resize import Resize
from model.preprocessing.resize import Axis
from tests.model.backends.cpu.test_scan import run_python

CMYK = np.arange(640, dtype=np.uint8) * 7
_UID = 4711

# Loads the same kernels from copies of one cache, each damaged in another way, and prints those with wrong pixels.
_TRIALS = """
import logging, sys
from pathlib import Path
from tests.model.jit.test_kept_code import pixels
logging.basicConfig(format="%(message)s")
right = pixels(Path(sys.argv[1]))
for cache in sorted(Path(sys.argv[2]).iterdir()):
    if pixels(cache) != right:
        print("wrong pixels with", cache)
print("done")
"""


def pixels(cache: Path) -> bytes:
    """What the two kernels of the JPEG decoder compute with this cache."""
    memory = CMYK.copy()
    CmykToRgb(cache)(memory)
    image = np.random.default_rng(0).integers(0, 256, (227, 303, 3), np.uint8)
    resized = Resize(cache)(image, Axis(303, 341, 58, 282), Axis(227, 256, 16, 240))
    return memory[: 3 * memory.size // 4].tobytes() + resized.tobytes()


@pytest.fixture(autouse=True)
def _untold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_code, "_told", set())


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the code of both kernels."""
    cache = tmp_path_factory.mktemp("full")
    pixels(cache)
    return cache


def files(cache: Path) -> list[Path]:
    """Every file in a cache."""
    return sorted(path for path in cache.rglob("*") if path.is_file())


def damages(size: int) -> Iterator[Callable[[bytes], bytes]]:
    """Single flipped bits all over a file of this size, and cuts, also to nothing, and strange content."""
    start = len(kept_code.MAGIC) + kept_code.DIGEST_BYTES
    for place in (*range(start + 40), *np.linspace(start, size - 1, 300).astype(int)):
        for bit in (0, 7):
            yield partial(flipped, place=int(place), bit=bit)
    for length in (0, 1, start - 1, start, start + 1, size // 2, size - 1):
        yield itemgetter(slice(length))
    yield lambda data: data + b"\0"
    yield lambda data: bytes(len(data))


def flipped(data: bytes, place: int, bit: int) -> bytes:
    """The data with one other bit."""
    changed = bytearray(data)
    changed[place] ^= 1 << bit
    return bytes(changed)


def test_no_damage_is_read_as_code() -> None:
    """Whatever bit is flipped and wherever the file is cut, its data is not returned."""
    content = kept_code.sealed(bytes(range(256)) * 40, "identity")

    assert bytes(range(256)) * 40 == kept_code.payload(content, "identity")
    assert kept_code.payload(content, "another kernel") is None
    assert [] == [n for n, damage in enumerate(damages(len(content))) if kept_code.payload(damage(content), "identity")]


@pytest.mark.slow
def test_damaged_files_give_right_pixels_or_are_compiled_again(full: Path, tmp_path: Path) -> None:
    """Bits are flipped and files cut in copies of a cache: no crash, no wrong pixel, one warning for each file."""
    for number in range(12):
        copy = tmp_path / "trials" / f"{number:02}"
        shutil.copytree(full, copy)
        for path in files(copy):
            data = path.read_bytes()
            place = int(np.random.default_rng(number).integers(len(data)))
            path.write_bytes(flipped(data, place, number % 8) if number % 4 else data[:place])
    said = run_python(f"import sys; sys.argv = ['', {str(full)!r}, {str(tmp_path / 'trials')!r}]{_TRIALS}")

    assert "wrong pixels" not in said
    assert "done" in said
    assert 24 == said.count("is damaged: it is removed, and the code compiled again")
    for copy in (tmp_path / "trials").iterdir():
        assert [path.name for path in files(full)] == [path.name for path in files(copy)]


def test_a_damaged_file_is_replaced_once_and_named(
    full: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The warning names the file; the next start finds good code and says nothing."""
    shutil.copytree(full, tmp_path / "cache")
    right = pixels(full)
    for path in files(tmp_path / "cache"):
        path.write_bytes(path.read_bytes()[:-1])
    caplog.clear()
    assert right == pixels(tmp_path / "cache")
    named = [record.getMessage().partition(" is damaged")[0] for record in caplog.records]
    caplog.clear()

    assert right == pixels(tmp_path / "cache")
    assert [str(path) for path in files(tmp_path / "cache")] == sorted(named)
    assert [] == caplog.records


@pytest.mark.parametrize("moved", [True, False])
def test_code_of_another_kernel_is_not_run(moved: bool, full: Path, tmp_path: Path) -> None:
    """A file under another kernel's name, or of another version of the sources, is not used."""
    shutil.copytree(full, tmp_path / "cache")
    one, two = files(tmp_path / "cache")
    if moved:
        one.rename(tmp_path / "moved")
        two.rename(one)
        (tmp_path / "moved").rename(two)
    else:
        one.parent.rename(one.parent.with_name("000000000000"))

    assert pixels(full) == pixels(tmp_path / "cache")


def test_a_full_disk_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If a file cannot be written there is no part of it, the kernel runs, and one line says so."""
    write = Path.write_bytes

    def no_space(path: Path, data: bytes) -> int:
        write(path, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", no_space)
        found = pixels(tmp_path)

    assert [] == files(tmp_path)
    assert pixels(tmp_path) == found
    (line,) = [record.getMessage() for record in caplog.records]
    assert f"compiled code cannot be kept in {tmp_path} (No space left on device)" in line


def unwritable(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every attempt to write below the directory fail, also for root."""

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(kept_code, "write", refuse)
    monkeypatch.setattr(os, "getuid", lambda: _UID)


def test_a_cache_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The line names the directory, both users and the cure; each kernel runs."""
    unwritable(tmp_path, monkeypatch)
    pixels(tmp_path)
    pixels(tmp_path)

    (line,) = [record.getMessage() for record in caplog.records]
    for part in (str(tmp_path), "Permission denied", f"uid {_UID}", f"belongs to uid {tmp_path.stat().st_uid}"):
        assert part in line
    assert "set VIM_CACHE_DIR" in line


def test_a_full_cache_is_read_although_it_cannot_be_written(
    full: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Code in a read-only directory is used, and nothing is said."""
    unwritable(full, monkeypatch)
    caplog.set_level(logging.INFO)

    assert (1, 1) == (CmykToRgb(full)._code.cache_hits, Resize(full)._code.cache_hits)
    assert [] == caplog.records


def test_without_a_home_directory_nothing_is_kept(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """A user without HOME and passwd entry gets one line that names the setting, and no directory called ~."""

    def unknown(_: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", unknown)
    monkeypatch.setattr("numba.config.CACHE_DIR", "")
    monkeypatch.chdir(tmp_path)
    CmykToRgb()
    CmykToRgb()

    (line,) = [record.getMessage() for record in caplog.records]
    assert "VIM_CACHE_DIR" in line
    assert [] == list(tmp_path.iterdir())
