"""Blocking work and the ends of processes can be awaited when no thread can be started."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from service.system import blocking

pytestmark = pytest.mark.anyio


@contextmanager
def no_threads() -> Iterator[None]:
    """Let every start of a thread fail."""

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        yield


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that does not end by itself."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        yield process
        process.kill()


async def test_work_runs_in_a_thread() -> None:
    """Work runs in a thread, and the event loop does not wait for it."""
    assert await blocking.run(threading.get_ident) != threading.get_ident()


async def test_work_runs_on_the_loop_without_threads() -> None:
    """Without threads the work runs on the event loop."""
    with no_threads():
        assert await blocking.run(b"".join, [b"a", b"b"]) == b"ab"


async def test_the_status_of_a_process_that_ends(sleeper: subprocess.Popen[bytes]) -> None:
    """`exit_status` waits until the process ends and returns its status."""
    asyncio.get_running_loop().call_later(0.05, sleeper.kill)

    with no_threads():
        assert await blocking.exit_status(sleeper, 60) == -9


async def test_a_process_that_does_not_end(sleeper: subprocess.Popen[bytes]) -> None:
    """`exit_status` returns None after its time limit, and `ended` kills the process."""
    assert await blocking.exit_status(sleeper, 0.05) is None
    assert await blocking.ended(sleeper, 0.05) == -9
