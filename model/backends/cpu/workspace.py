"""Reusable buffers of a forward pass, backed by huge pages where the system has them.

A pass reads its buffers sixteen channels at a time, and each token is in another 4 KiB page. Translating that many
addresses slows the whole pass, most of all on virtual machines.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator

import torch
from torch import Tensor

MAX_KEPT = 1 << 24  # largest buffer kept between passes: 64 MiB
_PAGE = 1 << 21  # bytes of a huge page on x86; sizes are rounded up to it


class Workspace:
    """A pool of float32 buffers. Several threads may borrow at the same time."""

    def __init__(self) -> None:
        self._free: list[Tensor] = []

    @property
    def kept(self) -> int:
        """Float32 numbers that are kept for the next pass."""
        return sum(map(len, self._free))

    @contextlib.contextmanager
    def borrow(self, numbers: int) -> Iterator[Tensor]:
        """Yield an uninitialised buffer of `numbers` floats; reuse the last one if it is large enough."""
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
    """Return at least `numbers` float32 zeros in huge pages; the system provides each page when it is first used."""
    size = -(-4 * max(1, numbers) // _PAGE) * _PAGE
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(size // 4)
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.float32)
