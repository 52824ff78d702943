"""Integers that several processes count together: each process writes its own row, and all read the sums.

The rows are in an anonymous memory file, so nothing is lost when a process is killed, and its successor continues its
row. For numbers that are not metrics.
"""

from __future__ import annotations

import mmap
import os

import numpy as np


class SharedCounters:
    """Counters of all processes: int64 (processes, numbers). This process writes to row `own`."""

    def __init__(self, rows: np.ndarray, own: int = 0) -> None:
        self._rows = rows
        self._own = own

    @classmethod
    def of_one(cls, numbers: int) -> SharedCounters:
        """Counters for a process that counts alone."""
        return cls(np.zeros((1, numbers), np.int64))

    @classmethod
    def mapped(cls, descriptor: int, processes: int, numbers: int, own: int) -> SharedCounters:
        """Counters in the memory file that `memory` has made."""
        memory = mmap.mmap(descriptor, 8 * processes * numbers)
        return cls(np.frombuffer(memory, np.int64).reshape(processes, numbers), own)

    def part(self, first: int, numbers: int) -> SharedCounters:
        """A view of `numbers` counters, beginning with `first`."""
        return SharedCounters(self._rows[:, first : first + numbers], self._own)

    def add(self, index: int, amount: int) -> None:
        """Add to this process's counter."""
        self._rows[self._own, index] += amount

    def put(self, index: int, value: int) -> None:
        """Set this process's value of a number that is not summed up."""
        self._rows[self._own, index] = value

    def total(self, index: int) -> int:
        """The sum over all processes."""
        return int(self._rows[:, index].sum())

    def highest(self, index: int) -> int:
        """The highest value of all processes."""
        return int(self._rows[:, index].max())

    def totals(self) -> list[int]:
        """The sums of all counters."""
        found: list[int] = self._rows.sum(0).tolist()
        return found


def memory(processes: int, numbers: int) -> int:
    """Make a memory file of zeros for the counters of all processes; returns its descriptor."""
    descriptor = os.memfd_create("vim-counters")
    os.ftruncate(descriptor, 8 * processes * numbers)
    return descriptor
