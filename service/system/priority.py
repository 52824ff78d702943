"""Runs work at a low CPU priority, in a process that computes at the usual priority afterwards.

A process may lower its priority, but not raise it again. So the work runs in a new thread. The threads that it starts
have the same low priority, and end with it. Where Linux groups processes by session (autogroup), it compares priorities
only within a group. There the priority of the whole group is lowered too. That can be undone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

log = logging.getLogger("vim.worker")

TRIES, PAUSE_S = 40, 0.05
NICE = 10  # a thread with this value gets a tenth of the time of one with the usual value

T = TypeVar("T")


def run_in_background(work: Callable[[], T]) -> T:
    """Run `work()` in a thread at low priority; return its result, or raise its error."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        try:
            results.append(work())
        except BaseException as error:  # raised again in the caller
            errors.append(error)

    with low_group():
        thread = threading.Thread(target=run, name="background")
        thread.start()
        thread.join()
    if errors:
        raise errors[0]
    return results[0]


@contextlib.contextmanager
def low_group(file: Path = Path("/proc/self/autogroup")) -> Iterator[None]:
    """Lower the priority of this process's session group during the context, where there are such groups."""
    lowered = _write(file, NICE)
    try:
        yield
    finally:
        if lowered and not _write(file, 0):
            log.warning("the priority of this process could not be raised again; its passes may be slow")


def _write(file: Path, nice: int) -> bool:
    """Set the priority of a group; return whether that succeeded. Linux allows one change in 0.1 s to all users."""
    for _ in range(TRIES):
        try:
            file.write_text(f"{nice}\n")
        except BlockingIOError:
            time.sleep(PAUSE_S)
        except OSError:
            return False
        else:
            return True
    return False
