"""Slots: decoded pixels in memory that the device processes share. One slot per image, uint8 (size, size, 3).

The memory is an anonymous file (memfd): no name to leak, no /dev/shm limit, and a restarted device process maps the
same pixels. Slots are also the admission limit: a request takes one for each image before any byte is decoded (see
`service.engine.admission`).
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass

import numpy as np

from service.jobs import RequestClass


def map_slots(descriptor: int, slots: int, size: int, first: int = 0) -> np.ndarray:
    """Map the slots of a memory file from `first` on: writable uint8 (slots - first, size, size, 3)."""
    memory = mmap.mmap(descriptor, slots * size * size * 3)
    views: np.ndarray = np.frombuffer(memory, np.uint8).reshape(slots, size, size, 3)[first:]
    return views


@dataclass(frozen=True, slots=True)
class Lease:
    """The slots of one HTTP process in the memory of its parent."""

    descriptor: int
    first: int
    total: int  # slots of the whole memory file


class Slots:
    """Counts the holders of each slot; a slot is free again when its last holder releases it."""

    def __init__(self, count: int, lease: Lease | None = None) -> None:
        self.descriptor = lease.descriptor if lease else os.memfd_create("vim-pixels")
        self.count = count
        self.total = count + 1  # one more for the canary image
        self.canary_slot = count
        self.in_use = 0  # images admitted and not yet answered
        self.in_use_by: dict[RequestClass, int] = {"interactive": 0, "bulk": 0}
        self.views: np.ndarray  # uint8 (slots, size, size, 3), once `map` has been called
        self._lease = lease
        self._free = list(range(count - 1, -1, -1))
        self._holders = [0] * count
        self._class_of: dict[int, RequestClass] = {}  # of the slots in use

    def map(self, size: int) -> None:
        """Map the slots, once the side of the model's image is known."""
        if self._lease:
            self.views = map_slots(self.descriptor, self._lease.total, size, self._lease.first)
            return
        os.ftruncate(self.descriptor, self.total * size * size * 3)
        self.views = map_slots(self.descriptor, self.total, size)

    def acquire(self, count: int, request_class: RequestClass = "interactive") -> list[int]:
        """Take `count` free slots; the caller has checked that there are enough."""
        assert count <= len(self._free)
        taken = [self._free.pop() for _ in range(count)]
        self.in_use += count
        self.in_use_by[request_class] += count
        for slot in taken:
            self._holders[slot] = 1
            self._class_of[slot] = request_class
        return taken

    def hold(self, *slots: int) -> None:
        """Add a holder to slots that are in use."""
        for slot in slots:
            self._holders[slot] += 1

    def release(self, *slots: int) -> None:
        """Remove a holder of each slot; the last one frees it."""
        for slot in slots:
            self._holders[slot] -= 1
            assert self._holders[slot] >= 0
            if self._holders[slot] == 0:
                self._free.append(slot)
                self.in_use -= 1
                self.in_use_by[self._class_of.pop(slot)] -= 1

    def close(self) -> None:
        """Close the memory file; the kernel frees it when the last process that maps it has ended."""
        os.close(self.descriptor)
