"""Commands that run beside the entries, such as the build of the baseline. Each writes a file with its result."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.gpu.entry import PostponedError, SkippedError

TAIL_LINES = 12
PR_SET_PDEATHSIG = 1


class Job:
    """A command in the background, with its output in a log and its result in a file below `folder`."""

    def __init__(
        self, name: str, command: Sequence[str], folder: Path, limit_s: float, env: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self._limit_s = limit_s
        self._log = folder / f"{name}.log"
        self._file = _file(folder, name)
        folder.mkdir(parents=True, exist_ok=True)
        self._file.unlink(missing_ok=True)
        self._start = time.monotonic()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=env, start_new_session=True)
        self._thread = threading.Thread(target=self._wait, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the command if it is still running, and wait for its file."""
        if self._process.poll() is None:
            kill(self._process.pid)
        self._thread.join(10)

    def _wait(self) -> None:
        reason = ""
        try:
            status = self._process.wait(self._limit_s)
        except subprocess.TimeoutExpired:
            kill(self._process.pid)
            status, reason = self._process.wait(), f"took longer than {self._limit_s:.0f} s"
        result: dict[str, Any] = {"seconds": round(time.monotonic() - self._start, 1), "status": "ok"}
        if status:
            result |= {"status": "failed", "reason": reason or f"exit status {status}", "log": tail(self._log)}
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps(result), encoding="utf-8")
        new.replace(self._file)


def die_with_parent() -> None:
    """End this process when its parent ends, so that no process of a killed call continues. Linux only."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def outcome(folder: Path, name: str) -> dict[str, Any] | None:
    """Return how a job ended: its status, seconds and, if it failed, the reason and the end of its log."""
    path = _file(folder, name)
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def wait_for(folder: Path, name: str, seconds: float) -> None:
    """Wait until a job has succeeded. Raises SkippedError if it failed, PostponedError if it needs longer."""
    end = time.monotonic() + seconds
    while (found := outcome(folder, name)) is None:
        if time.monotonic() > end:
            raise PostponedError(f"{name} was not ready after {seconds:.0f} s")
        time.sleep(0.1)
    if found["status"] != "ok":
        raise SkippedError(f"{name} failed: {found['reason']}: {' | '.join(found['log'][-3:])}")


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"


def tail(log: Path) -> list[str]:
    """Return the last lines of a log."""
    return log.read_text(errors="replace").splitlines()[-TAIL_LINES:] if log.is_file() else []


def kill(pid: int) -> None:
    """Kill a process of ours, which leads its own group, and what it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
