"""Faults for the tests of the dry run, from BENCH_GPU_FAULTS: lines "kind of-what". A real run never reads it.

raise:NAME TEXT     NAME is the error: RuntimeError, ScanError, CalledProcessError, TimeoutExpired, ImportError
wrong TEXT          checks give a wrong result
kill TEXT           SIGKILL for the process that runs them
hang TEXT           they do not end
memory              only a batch of one fits
kernel NAME         the launch raises
import MODULE       importing the entries raises
"""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import time
from collections.abc import Callable

from bench.gpu.entry import Entry, Values
from bench.gpu.standins import Immediate
from model.backends.triton import launch
from model.errors import ScanError

VARIABLE = "BENCH_GPU_FAULTS"
ERRORS: dict[str, Callable[[], Exception]] = {
    "RuntimeError": lambda: RuntimeError("CUDA error: an illegal memory access was encountered"),
    "ScanError": lambda: ScanError("scan 'triton' cannot run"),
    "CalledProcessError": lambda: subprocess.CalledProcessError(1, ["tool"], stderr="the tool's last words"),
    "TimeoutExpired": lambda: subprocess.TimeoutExpired(["tool"], 60),
    "ImportError": lambda: ImportError("undefined symbol"),
}


def orders() -> list[tuple[str, str]]:
    """Return the requested faults: the kind, and the text that selects the entry."""
    lines = os.environ.get(VARIABLE, "").splitlines()
    return [(kind, rest) for kind, _, rest in (line.partition(" ") for line in lines)]


def install() -> None:
    """Install the faults that do not belong to an entry."""
    for kind, what in orders():
        if kind == "memory":
            Immediate.free = lambda self: 1  # type: ignore[method-assign]
        elif kind == "kernel":
            setattr(launch, what, _raising(RuntimeError(f"Triton Error [CUDA]: {what} raised")))
        elif kind == "import":
            raise ImportError(f"{what} does not load")


def applied(entry: Entry) -> Entry:
    """Return the entry with its fault, if it has one."""
    for kind, what in orders():
        if what and what in f"{entry.part}: {entry.name}" and (run := _faulty(kind, entry)):
            return dataclasses.replace(entry, run=run, grace_s=0)
    return entry


def _faulty(kind: str, entry: Entry) -> Callable[[], Values] | None:
    if kind.startswith("raise:"):
        return _raising(ERRORS[kind.removeprefix("raise:")]())
    if kind == "wrong":
        return lambda: entry.run() | {"ok": False}
    if kind == "kill":
        return _kill
    return _hang if kind == "hang" else None


def _raising(error: Exception) -> Callable[..., Values]:
    def run(*_: object, **__: object) -> Values:
        raise error

    return run


def _kill() -> Values:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def _hang() -> Values:
    time.sleep(3600)
    return {}
