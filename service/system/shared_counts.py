"""Numbers that several processes count together: each process writes a part of its own, and all read the sums.

The parts are in an anonymous memory file: nothing is lost when a process is killed. No lock is needed, because no part
has two writers. A limit holds for all processes if each of them adds first and then reads the sum: of two that add at
the same time, at least one sees both parts.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from typing import NamedTuple, overload

BYTES = 8  # of one part


class SharedCount(NamedTuple):
    """One number: `sum(count.parts)`. `count.own[0]` is the part of this process, which it may change."""

    own: memoryview  # int64 (1)
    parts: memoryview  # int64 (processes)


class SharedCounts(Sequence[SharedCount]):
    """Numbers by index. Their parts are next to each other in the memory: one int64 of each process."""

    def __init__(self, memory: memoryview, processes: int = 1, own: int = 0) -> None:
        self._parts = memory.cast("q")
        self._processes = processes
        self._own = own

    def __len__(self) -> int:
        return len(self._parts) // self._processes

    @overload
    def __getitem__(self, index: int) -> SharedCount: ...
    @overload
    def __getitem__(self, index: slice) -> list[SharedCount]: ...
    def __getitem__(self, index: int | slice) -> SharedCount | list[SharedCount]:
        if isinstance(index, slice):
            return [self._number(n) for n in range(*index.indices(len(self)))]
        return self._number(range(len(self))[index])

    def _number(self, index: int) -> SharedCount:
        parts = self._parts[index * self._processes : (index + 1) * self._processes]
        return SharedCount(parts[self._own : self._own + 1], parts)


def alone(numbers: int = 1) -> SharedCounts:
    """Numbers of a process that counts alone."""
    return SharedCounts(memoryview(bytearray(BYTES * numbers)))


def memory(processes: int, numbers: int) -> int:
    """Make a memory file of zeros for the numbers of all processes; returns its descriptor."""
    descriptor = os.memfd_create("vim-counts")
    os.ftruncate(descriptor, BYTES * processes * numbers)
    return descriptor


def mapped(descriptor: int, processes: int, numbers: int, own: int) -> SharedCounts:
    """The numbers in the memory file that `memory` has made, for the process `own`."""
    return SharedCounts(memoryview(mmap.mmap(descriptor, BYTES * processes * numbers)), processes, own)
