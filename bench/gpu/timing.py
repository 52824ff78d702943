"""Time of one piece of work on a device: events around each run, the median of many, peak memory, out of memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from bench.gpu.record import Entry

WARM_UPS, LEAST_RUNS, MOST_RUNS, ENOUGH_S = 3, 10, 200, 1.0


@dataclass(frozen=True, slots=True)
class Clock:
    """How long to measure; a dry run measures only briefly."""

    device: torch.device
    least_runs: int = LEAST_RUNS
    enough_s: float = ENOUGH_S

    def measure(self, work: Callable[[], object], stream: Any = None) -> Entry:
        """Return median and quartiles in milliseconds and peak memory in bytes, or that memory ran out.

        `stream` is the stream of the work, if it is not torch's current one.
        """
        try:
            return self._measure(work, stream)
        except torch.OutOfMemoryError as error:
            self._settle()
            return {"out_of_memory": str(error).splitlines()[0]}

    def _measure(self, work: Callable[[], object], stream: Any) -> Entry:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        for _ in range(WARM_UPS):
            work()
        self._settle()
        runs: list[float] = []
        end = time.perf_counter() + self.enough_s
        while len(runs) < self.least_runs or (len(runs) < MOST_RUNS and time.perf_counter() < end):
            runs.append(self._once(work, stream))
        low, middle, high = statistics.quantiles(runs, n=4)
        peak = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else 0
        spread = [round(low, 4), round(high, 4)]
        return {"ms": round(middle, 4), "quartiles_ms": spread, "runs": len(runs), "peak_bytes": peak}

    def _once(self, work: Callable[[], object], stream: Any) -> float:
        if self.device.type != "cuda":
            start = time.perf_counter()
            work()
            return 1000 * (time.perf_counter() - start)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record(stream)
        work()
        end.record(stream)
        end.synchronize()
        return float(begin.elapsed_time(end))

    def _settle(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
