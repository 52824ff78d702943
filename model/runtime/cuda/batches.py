"""Batch sizes that fit into memory, the size in which a batch runs, and runs of neighbouring slots. Plain Python."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

log = logging.getLogger("vim.model")

GROWTH = 1.1  # twice the images take at most twice the memory; a tenth is added for the allocator's rounding
USABLE = 0.9  # of the free memory; the rest is for graphs and for libraries that allocate memory themselves


def size_for(images: int, sizes: Sequence[int]) -> int:
    """Return the smallest of the ascending sizes that holds `images` images."""
    return next(size for size in sizes if size >= images)


def sizes_that_fit(sizes: Sequence[int], peak_of: Callable[[int], int | None], free: Callable[[], int]) -> list[int]:
    """Return those of the ascending sizes that run in the available memory.

    `peak_of` runs a batch and returns the bytes that it used, or None if memory ran out. A size that would not fit,
    judging by the previous size, is not tried: where memory is shared, running out of it can disturb other processes.
    """
    fitting: list[int] = []
    peak: int | None = 0
    for size in sizes:
        expected = GROWTH * (peak or 0) * size / fitting[-1] if fitting else 0.0
        if expected > USABLE * free():
            log.warning("a batch of %d would take %.1f GB, more than is free", size, expected / 1e9)
            break
        if (peak := peak_of(size)) is None:
            log.warning("a batch of %d does not fit into memory", size)
            break
        fitting.append(size)
    return fitting


def runs_of(slots: Sequence[int]) -> list[tuple[int, int, int]]:
    """Group neighbouring slots: (position in `slots`, first slot, count) for each run."""
    runs: list[tuple[int, int, int]] = []
    for position, slot in enumerate(slots):
        if runs and runs[-1][1] + runs[-1][2] == slot:
            first, start, count = runs[-1]
            runs[-1] = (first, start, count + 1)
        else:
            runs.append((position, slot, 1))
    return runs
