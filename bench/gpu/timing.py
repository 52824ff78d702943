"""Time of one piece of work on a device: events around each run, the median of many, reserved memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from bench.gpu.entry import Values

WARM_UPS, LEAST_RUNS, MOST_RUNS, ENOUGH_S = 3, 10, 200, 0.7
SLOW_MS, LEAST_SLOW_RUNS = 1000, 3


@dataclass(frozen=True, slots=True)
class Clock:
    """How long to measure, and how often."""

    device: torch.device
    warm_ups: int = WARM_UPS
    least_runs: int = LEAST_RUNS
    enough_s: float = ENOUGH_S

    def measure(self, work: Callable[[], object], stream: Any = None) -> Values:
        """Return median and quartiles in milliseconds, and the bytes that torch reserves for all of the process.

        `stream` is the stream of the work, if it is not torch's current one.
        """
        for _ in range(self.warm_ups):
            work()
        self._settle()
        runs: list[float] = []
        end = time.perf_counter() + self.enough_s
        while len(runs) < self._least(runs) or (len(runs) < MOST_RUNS and time.perf_counter() < end):
            runs.append(self._once(work, stream))
        low, middle, high = statistics.quantiles(runs, n=4)
        values: Values = {"ms": round(middle, 4), "quartiles_ms": [round(low, 4), round(high, 4)], "runs": len(runs)}
        if self.device.type == "cuda":
            values["reserved_bytes"] = torch.cuda.memory_reserved(self.device)
        return values

    def _least(self, runs: list[float]) -> int:
        return min(self.least_runs, LEAST_SLOW_RUNS) if runs and runs[0] > SLOW_MS else self.least_runs

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
