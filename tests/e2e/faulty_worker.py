"""The device process with faults that an image of one plain colour sets off. For tests only; no setting leads here."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

import numpy as np

from model.runner import Rows, Runner
from service import worker

SEGFAULT, HANG, NOT_FINITE, RAISE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)
SLOW = (0, 255, 255)
HANG_S, SLOW_S = 60.0, 2.0

_run = Runner.run


def faulty_run(self: Runner, pixels: np.ndarray, **parts: Any) -> Rows:
    """`Runner.run`, after the faults that the pixels ask for."""
    if pixels.any() and len(pixels) > int(os.environ.get("FAULTY_ROOM", "1000")):  # the warm-up's pixels are all zero
        raise MemoryError(f"no room for {len(pixels)} images")
    if pixels.any():
        time.sleep(float(os.environ.get("FAULTY_BATCH_S", "0")))
    if _holds(pixels, SEGFAULT).any():
        os.kill(os.getpid(), signal.SIGSEGV)
    if _holds(pixels, HANG).any():
        time.sleep(HANG_S)
    if _holds(pixels, SLOW).any():
        time.sleep(SLOW_S)
    if _holds(pixels, RAISE).any():
        raise RuntimeError("a fault for a test")
    rows = _run(self, pixels, **parts)
    return Rows(rows.scores, rows.cls, rows.mean, rows.finite & ~_holds(pixels, NOT_FINITE))


def _holds(pixels: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    found: np.ndarray = (pixels == np.array(colour, np.uint8)).all(axis=(1, 2, 3))
    return found


Runner.run = faulty_run  # type: ignore[method-assign]

if __name__ == "__main__":
    sys.exit(worker.main(int(sys.argv[1]), int(sys.argv[2])))
