"""Whole numbers that several processes count together: each writes a row of its own, all of them read the sum.

In an anonymous memory file, so that nothing is lost when a process is killed; one that takes its place goes on with its
row. For what /metrics does not show.
"""

from __future__ import annotations

import mmap
import os

import numpy as np


class Tally:
    """int64 (processes, numbers); `own` is the row to write."""

    def __init__(self, rows: np.ndarray, own: int = 0) -> None:
        self._rows = rows
        self._own = own

    @classmethod
    def of_one(cls, numbers: int) -> Tally:
        """For a process that counts alone."""
        return cls(np.zeros((1, numbers), np.int64))

    @classmethod
    def mapped(cls, descriptor: int, processes: int, numbers: int, own: int) -> Tally:
        """For one of several; the memory file is `memory`'s."""
        memory = mmap.mmap(descriptor, 8 * processes * numbers)
        return cls(np.frombuffer(memory, np.int64).reshape(processes, numbers), own)

    def part(self, first: int, numbers: int) -> Tally:
        """So many of the numbers."""
        return Tally(self._rows[:, first : first + numbers], self._own)

    def add(self, index: int, amount: int) -> None:
        """Count."""
        self._rows[self._own, index] += amount

    def put(self, index: int, value: int) -> None:
        """What this process says of a number that is not added up."""
        self._rows[self._own, index] = value

    def total(self, index: int) -> int:
        """Of all processes."""
        return int(self._rows[:, index].sum())

    def highest(self, index: int) -> int:
        """What any process has put there."""
        return int(self._rows[:, index].max())

    def totals(self) -> list[int]:
        """All numbers, each of all processes."""
        found: list[int] = self._rows.sum(0).tolist()
        return found


def memory(processes: int, numbers: int) -> int:
    """The descriptor of a new memory file for so many, all zero."""
    descriptor = os.memfd_create("vim-tally")
    os.ftruncate(descriptor, 8 * processes * numbers)
    return descriptor
