"""Which batch sizes fit into memory, which of them a batch runs in, and how its slots lie: plain Python."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

log = logging.getLogger("vim.model")

GROWTH = 1.1  # a batch of twice the images takes at most twice the memory; a tenth is for the allocator's rounding
USABLE = 0.9  # of the free memory; the rest is for graphs and for libraries that allocate by themselves


def size_for(images: int, sizes: Sequence[int]) -> int:
    """The smallest of the ascending sizes that holds so many images."""
    return next(size for size in sizes if size >= images)


def sizes_that_fit(sizes: Sequence[int], peak_of: Callable[[int], int | None], free: Callable[[], int]) -> list[int]:
    """Those of the ascending sizes that run in the memory there is.

    `peak_of` runs a batch and says how many bytes it took, or None when it ran out of memory. A size that would not fit
    by what the one before it took is not tried: where memory is shared, running out of it can harm others.
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
    """Neighbouring slots in one piece: (position in `slots`, first slot, how many) for each run."""
    runs: list[tuple[int, int, int]] = []
    for position, slot in enumerate(slots):
        if runs and runs[-1][1] + runs[-1][2] == slot:
            first, start, count = runs[-1]
            runs[-1] = (first, start, count + 1)
        else:
            runs.append((position, slot, 1))
    return runs
