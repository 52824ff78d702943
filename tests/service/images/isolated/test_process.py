"""Decoder processes: a file that ends one, or takes too long, is refused, and the next file is decoded."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from model.preprocessing.recipe import Preprocess
from service.errors import DeadlineExceeded, ImageTooComplex, NotReady, OutOfMemory, ServiceError, UnsupportedImage
from service.images.header import Header
from service.images.isolated.process import DecoderProcesses

STUB = "tests.service.images.isolated.stub"
RECIPE, HEADER = Preprocess(40), Header(8, 8, 4)


@pytest.fixture
def processes() -> Iterator[DecoderProcesses]:
    """Decoder processes that run the stub."""
    processes = DecoderProcesses(patience_s=20, worker=STUB)
    yield processes
    processes.close()


def children() -> set[int]:
    """The ids of the running child processes."""
    return {child.pid for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE}


def started_since(before: set[int]) -> set[int]:
    """The ids of the child processes that are new; waits for the first one."""
    until = time.monotonic() + 20
    while not (found := children() - before):
        assert time.monotonic() < until, "no process was started"
        time.sleep(0.01)
    return found


@pytest.mark.parametrize(
    ("order", "kind", "reason"),
    [
        ("SIGSEGV", UnsupportedImage, "is damaged or of an unsupported kind"),
        ("SIGABRT", UnsupportedImage, "is damaged or of an unsupported kind"),
        ("exit", UnsupportedImage, "is damaged or of an unsupported kind"),
        ("spin", ImageTooComplex, "of 8 x 8 pixels takes too long to decode"),
        ("SIGKILL", OutOfMemory, "no memory for a SIGKILL image of 8 x 8 pixels"),
    ],
)
def test_a_process_that_ends_costs_one_file(
    processes: DecoderProcesses, order: str, kind: type[ServiceError], reason: str
) -> None:
    """The file that ended the process is refused, and the next one is decoded by a new process."""
    with pytest.raises(kind, match=reason):
        processes.decode(b"", order, HEADER, RECIPE)

    assert processes.decode(b"", "fine", HEADER, RECIPE).pixels.shape == (40, 40, 3)


def test_a_file_gets_a_second_chance(processes: DecoderProcesses, tmp_path: Path) -> None:
    """What ended the process may have been something else than the file."""
    marker = tmp_path / "ended"

    assert processes.decode(str(marker).encode(), "once", HEADER, RECIPE).pixels.shape == (40, 40, 3)
    assert marker.exists()


def test_a_process_that_hangs_is_killed() -> None:
    """A file that is not decoded in time gets 504, and its process is ended."""
    processes = DecoderProcesses(patience_s=0.3, worker=STUB)
    before = children()

    with pytest.raises(DeadlineExceeded, match="was not decoded within 0.3 s"):
        processes.decode(b"", "hang", HEADER, RECIPE)

    assert children() == before


def test_a_process_is_used_again(processes: DecoderProcesses) -> None:
    """One thread needs one process, for all of its files."""
    before = children()
    first, second = (processes.decode(b"", "fine", HEADER, RECIPE).pixels for _ in range(2))

    np.testing.assert_array_equal(first, second)
    assert len(children() - before) == 1


def test_an_idle_process_that_ended_is_replaced(processes: DecoderProcesses) -> None:
    """A process that ended while it was idle costs no file."""
    before = children()
    processes.decode(b"", "fine", HEADER, RECIPE)
    for pid in children() - before:
        psutil.Process(pid).kill()
        psutil.wait_procs([child for child in psutil.Process().children() if child.pid == pid], timeout=10)

    assert processes.decode(b"", "fine", HEADER, RECIPE).pixels.shape == (40, 40, 3)


def test_threads_use_processes_of_their_own(processes: DecoderProcesses) -> None:
    """While one thread waits for its file, another one's is decoded."""

    def hang() -> None:
        with pytest.raises(OutOfMemory):
            processes.decode(b"", "hang", HEADER, RECIPE)

    waiting = threading.Thread(target=hang)
    before = children()
    waiting.start()
    busy = started_since(before)

    assert processes.decode(b"", "fine", HEADER, RECIPE).pixels.shape == (40, 40, 3)
    assert waiting.is_alive()
    processes.close()
    for pid in busy:
        psutil.Process(pid).kill()
    for pid in started_since(before | busy):  # the file is tried once more in another process
        psutil.Process(pid).kill()
    waiting.join(10)
    assert not waiting.is_alive()


def test_close_ends_all_processes(processes: DecoderProcesses) -> None:
    """After closing no process is left."""
    before = children()
    processes.decode(b"", "fine", HEADER, RECIPE)
    processes.close()

    assert children() == before


def test_a_process_that_cannot_be_started(processes: DecoderProcesses, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without descriptors or memory for a process the client may try again; the reason is in the log only."""
    monkeypatch.setattr("sys.executable", "/nowhere/python")

    with pytest.raises(NotReady, match="no decoder process can be started now") as caught:
        processes.decode(b"", "fine", HEADER, RECIPE)

    assert caught.value.retry_after_s == 1
