"""Work in the background has a low priority; what the process does afterwards has the usual one."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from service.system import priority
from service.system.priority import NICE, run_in_background


def niceness() -> int:
    """The nice value of the calling thread."""
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_the_work_and_its_threads_have_a_low_priority() -> None:
    """The work and a thread that it starts are nice; the caller is not."""
    found: list[int] = []

    def work() -> int:
        thread = threading.Thread(target=lambda: found.append(niceness()))
        thread.start()
        thread.join()
        return niceness()

    before = niceness()
    assert before + NICE == run_in_background(work) == found[0]
    assert before == niceness()


def test_an_error_of_the_work_is_raised() -> None:
    """The caller gets the error of the work."""
    with pytest.raises(ZeroDivisionError):
        run_in_background(lambda: 1 // 0)


def test_a_change_that_comes_too_soon_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux refuses a second change within 0.1 s (EAGAIN); it is made a little later."""
    group, refusals = tmp_path / "autogroup", [BlockingIOError(), BlockingIOError()]
    write = Path.write_text

    def busy(file: Path, text: str) -> int:
        if text == "0\n" and refusals:
            raise refusals.pop()
        return write(file, text)

    monkeypatch.setattr(Path, "write_text", busy)
    with priority.low_group(group):
        assert f"{NICE}\n" == group.read_text()

    assert ("0\n", []) == (group.read_text(), refusals)


def test_the_group_of_the_session_is_slow_meanwhile(tmp_path: Path) -> None:
    """Where Linux groups processes by session, the group has a low priority during the work only."""
    group = tmp_path / "autogroup"
    group.write_text("/autogroup-1 nice 0\n")
    with priority.low_group(group):
        assert f"{NICE}\n" == group.read_text()
    assert "0\n" == group.read_text()
    with priority.low_group(tmp_path / "none" / "autogroup"):  # no such groups
        assert not (tmp_path / "none").exists()
