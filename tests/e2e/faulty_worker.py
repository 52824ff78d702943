"""The device process with the faults of `tests.e2e.faults`. It computes on the CPU, whatever the name of its device, so
that one machine can have several. Run as a program only.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from model.runtime.runner import Rows, Runner
from model.vim import Vim
from service.devices import worker
from service.settings import Settings
from tests.e2e import faults

_run, _recover, _load_model = Runner.run, Runner.recover, worker._load_model


class StickyError(RuntimeError):
    """Stands for a CUDA error after which every call fails, in this process."""

    poisoned = False

    def __init__(self) -> None:
        super().__init__("CUDA error: an illegal memory access was encountered (a fault for a test)")
        StickyError.poisoned = True


def faulty_load(settings: Settings, device: str) -> Vim:
    """Load the model on the CPU, unless a test keeps this device from starting."""
    if device in _lines(faults.DOWN):
        sys.exit(3)
    return _load_model(settings, "cpu")


def faulty_run(self: Runner, pixels: np.ndarray, **parts: Any) -> Rows:
    """`Runner.run`, after the faults that the pixels request."""
    real = bool(pixels.any())  # the warm-up's pixels are all zero
    if real and len(pixels) > int(_order(faults.ROOM) or 1000):
        raise MemoryError(f"no room for {len(pixels)} images")
    time.sleep(real * (float(_order(faults.BATCH_S) or 0) + len(pixels) * float(_order(faults.IMAGE_S) or 0)))
    _obey(pixels)
    return _spoilt(_run(self, pixels, **parts), pixels)


def faulty_recover(self: Runner) -> None:
    """`Runner.recover`, which does not succeed after a sticky error."""
    if StickyError.poisoned:
        raise StickyError
    _recover(self)


def _obey(pixels: np.ndarray) -> None:
    if _holds(pixels, faults.SEGFAULT).any():
        os.kill(os.getpid(), signal.SIGSEGV)
    if _holds(pixels, faults.HANG).any():
        time.sleep(faults.HANG_S)
    if _holds(pixels, faults.WAIT).any():
        _wait_for(faults.GO)
    if _holds(pixels, faults.RAISE).any():
        raise RuntimeError("a fault for a test")
    if _holds(pixels, faults.STICKY).any() and not _exists(faults.STICKY_ONCE):
        if (marker := _order(faults.STICKY_ONCE)) is not None:
            Path(marker).touch()
        raise StickyError


def _wait_for(name: str) -> None:
    end = time.monotonic() + faults.HANG_S
    while not _exists(name) and time.monotonic() < end:
        time.sleep(0.01)


def _spoilt(rows: Rows, pixels: np.ndarray) -> Rows:
    finite = rows.finite & ~_holds(pixels, faults.NOT_FINITE)
    if _exists(faults.NAN_CANARY):
        finite[:] = False
    if _exists(faults.WRONG_CANARY) and rows.cls is not None:
        rows = dataclasses.replace(rows, cls=1.01 * rows.cls)
    return dataclasses.replace(rows, finite=finite)


def _holds(pixels: np.ndarray, colour: faults.Colour) -> np.ndarray:
    found: np.ndarray = (pixels == np.array(colour, np.uint8)).all(axis=(1, 2, 3))
    return found


def _order(name: str) -> str | None:
    return os.environ.get(faults.PREFIX + name)


def _exists(name: str) -> bool:
    return (path := _order(name)) is not None and Path(path).exists()


def _lines(name: str) -> list[str]:
    return Path(_order(name) or "").read_text().split() if _exists(name) else []


if __name__ == "__main__":
    Runner.run, Runner.recover = faulty_run, faulty_recover  # type: ignore[method-assign]
    worker._load_model = faulty_load
    sys.exit(worker.main(int(sys.argv[1]), int(sys.argv[2])))
