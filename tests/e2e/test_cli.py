"""The command line as a process: the same answers with and without a server, and Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.e2e.server import ROOT, gone, serving
from tests.tiny import photo


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Restore SIGINT, because a shell's background jobs ignore it, and processes that are started here inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of twelve photographs and a file that is not an image."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(12):
        kind = ("JPEG", "PNG", "WEBP")[number % 3]
        (folder / f"{number:02}.{kind.lower()}").write_bytes(photo(number, (80 + number, 70), kind))
    (folder / "05b.png").write_text('{"images": ["not an image but JSON"]}')
    return folder


def command(model: Path, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    """`python -m service ...` in a session of its own."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("VIM_")}
    return subprocess.Popen(
        [sys.executable, "-m", "service", *map(str, arguments)],
        cwd=ROOT,
        env=clean | {"VIM_MODEL": str(model), "VIM_DEVICE": "cpu", "VIM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


def run(model: Path, *arguments: object) -> tuple[int, str, str]:
    """Exit status, stdout and stderr."""
    process = command(model, *arguments)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def test_answers_equal_the_servers(tmp_path: Path, tiny: Path, photos: Path) -> None:
    """classify and embed give the same answers in-process and by URL, within 1e-5, errors included."""
    with serving(tmp_path, model=tiny) as server:
        url = ("--url", server.url)
        by_url = run(tiny, "classify", photos, "--json", "--top-k", 7, *url)
        embedded = run(tiny, "embed", photos, "--json", "--out", tmp_path / "url.npy", *url)
        info = run(tiny, "info", *url)
    here = run(tiny, "classify", photos, "--json", "--top-k", 7)
    assert 1 == run(tiny, "embed", photos, "--out", tmp_path / "here.npy")[0]

    assert 1 == by_url[0] == here[0] == embedded[0]
    assert by_url[2].splitlines()[0] == here[2].splitlines()[0]
    assert "05b.png: the bytes are not an image" in here[2]
    theirs, ours = ([json.loads(line) for line in out.splitlines()] for out in (by_url[1], here[1]))
    assert 13 == len(ours)
    for a, b in zip(theirs, ours, strict=True):
        scores = [[one.pop("score") for one in line.get("predictions", [])] for line in (a, b)]
        np.testing.assert_allclose(scores[0], scores[1], rtol=0, atol=1e-5)
        assert a == b
    np.testing.assert_allclose(np.load(tmp_path / "url.npy"), np.load(tmp_path / "here.npy"), rtol=0, atol=1e-5)
    names = [(tmp_path / f"{name}.names.txt").read_text() for name in ("url", "here")]
    assert names[0] == names[1] == "".join(f"{file}\n" for file in sorted(photos.iterdir()) if file.name != "05b.png")
    assert ours[0]["model"] == json.loads(embedded[1])["model"]
    assert ours[0]["model"]["fingerprint"] in info[1]


def test_control_c_while_loading_is_quiet(tiny: Path, photos: Path) -> None:
    """Ctrl-C while loading gives status 130 and no output, and the device process has ended."""
    process = command(tiny, "classify", photos)
    worker = wait_for_worker(process)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)

    assert (130, "", "") == (process.returncode, out, err)
    assert gone(worker, within_s=10)


def test_control_c_while_answering_is_quiet(tiny: Path, photos: Path) -> None:
    """Ctrl-C while answering gives status 130 and no further output."""
    process = command(tiny, "classify", *[photos / "00.jpeg"] * 5000, "--json")
    assert process.stdout is not None
    first = process.stdout.readline()
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)

    assert (130, "") == (process.returncode, err)
    assert "predictions" in json.loads(first)


def wait_for_worker(process: subprocess.Popen[str]) -> int:
    """The device process's id, as soon as there is one."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for child in psutil.Process(process.pid).children():
            if "service.devices.worker" in child.cmdline():
                return child.pid
        time.sleep(0.02)
    raise AssertionError("no device process")
