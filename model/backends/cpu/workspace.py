"""Memory for one pass at a time, in huge pages where the system has them.

A pass goes through its buffers sixteen channels at a time, and each token's lie in another small page: on a virtual
machine, where looking a page up takes longest, that slows the whole pass.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator

import torch
from torch import Tensor

MAX_KEPT = 1 << 24  # numbers at most, 64 MiB, between passes
_PAGE = 1 << 21  # bytes of a page, or of several where they are smaller


class Workspace:
    """Lends float32 numbers. Several threads may borrow at once."""

    def __init__(self) -> None:
        self._free: list[Tensor] = []

    @property
    def kept(self) -> int:
        """Float32 numbers that are kept for the next pass."""
        return sum(map(len, self._free))

    @contextlib.contextmanager
    def borrow(self, numbers: int) -> Iterator[Tensor]:
        """So many, with anything in them; what was lent before, if it is large enough."""
        try:
            memory = self._free.pop()
        except IndexError:
            memory = torch.empty(0)
        if len(memory) < numbers:
            memory = allocate(numbers)
        yield memory[:numbers]
        if len(memory) <= MAX_KEPT:
            self._free.append(memory)


def allocate(numbers: int) -> Tensor:
    """Zeros, of which the system gives each page when it is first touched; unmapped when no tensor shows them."""
    size = -(-4 * max(1, numbers) // _PAGE) * _PAGE
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(size // 4)
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.float32)
