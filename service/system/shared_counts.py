"""Numbers that several processes count together: each process writes a part of its own, and all read the sums.

The parts are in an anonymous memory file: nothing is lost when a process is killed. No lock is needed, because no part
has two writers. A limit holds for all processes if each of them adds first and then reads the sum: of two that add at
the same time, at least one sees both parts.
"""

from __future__ import annotations

import mmap
import os
from typing import NamedTuple

BYTES = 8  # of one part


class SharedCount(NamedTuple):
    """One number: `sum(count.parts)`. `count.own[0]` is the part of this process, which it may change."""

    own: memoryview  # int64 (1)
    parts: memoryview  # int64 (processes)


def alone(numbers: int = 1) -> list[SharedCount]:
    """Numbers of a process that counts alone."""
    parts = memoryview(bytearray(BYTES * numbers)).cast("q")
    return [SharedCount(parts[n : n + 1], parts[n : n + 1]) for n in range(numbers)]


def memory(processes: int, numbers: int) -> int:
    """Make a memory file of zeros for the numbers of all processes; returns its descriptor."""
    descriptor = os.memfd_create("vim-counts")
    os.ftruncate(descriptor, BYTES * processes * numbers)
    return descriptor


def mapped(descriptor: int, processes: int, numbers: int, own: int) -> list[SharedCount]:
    """The numbers in the memory file that `memory` has made, for the process `own`."""
    everything = memoryview(mmap.mmap(descriptor, BYTES * processes * numbers)).cast("q")
    rows = [everything[first : first + processes] for first in range(0, processes * numbers, processes)]
    return [SharedCount(parts[own : own + 1], parts) for parts in rows]
