"""Slots: decoded pixels in memory that the device processes share. One slot per image, uint8 (size, size, 3).

The memory is an anonymous file (memfd): no name to leak, no /dev/shm limit, and a restarted device process maps the
same pixels. Slots are also the admission limit: a request takes one for each image before any byte is decoded (see
`service.engine.admission`).

With several HTTP processes each has slots for all images that the service admits. The common count of images decides
how many slots one process may use. A slot that was never used takes no memory. `trim` gives back memory that a process
no longer uses beyond its part.
"""

from __future__ import annotations

import heapq
import mmap
import os
from dataclasses import dataclass

import numpy as np

from service.devices.usage import Usage
from service.jobs import RequestClass


def map_slots(descriptor: int, slots: int, size: int) -> tuple[mmap.mmap, np.ndarray]:
    """Map the slots of a memory file: the mapping, and its writable view, uint8 (slots, size, size, 3)."""
    memory = mmap.mmap(descriptor, slots * size * size * 3)
    return memory, np.frombuffer(memory, np.uint8).reshape(slots, size, size, 3)


@dataclass(frozen=True, slots=True)
class Lease:
    """The slots of one of several HTTP processes in the memory of their parent."""

    descriptor: int
    number: int  # of the process, counted from 0
    processes: int


class Slots:
    """Counts the holders of each slot; a slot is free again when its last holder releases it."""

    def __init__(self, count: int, usage: Usage | None = None, lease: Lease | None = None) -> None:
        """`count`: images that may be admitted at once. `usage` counts them, with those of other processes."""
        self.descriptor = lease.descriptor if lease else os.memfd_create("vim-pixels")
        self.count = count
        self.first = lease.number * count if lease else 0  # the first slot of this process in the memory
        self.total = count * (lease.processes if lease else 1) + 1  # one more for the canary image
        self.canary_slot = self.total - 1
        self.usage = usage or Usage.alone()
        self.in_use = 0  # images of this process: admitted and not yet answered
        self.views: np.ndarray  # uint8 (slots, size, size, 3), once `map` has been called
        self._lease = lease
        self._images = self.usage.images
        self._memory: mmap.mmap
        self._free = list(range(count))  # a heap: the lowest slots are taken first
        self._holders = [0] * count
        self._class_of: dict[int, RequestClass] = {}  # of the slots in use
        self._part = max(1, count // lease.processes) if lease else count  # slots that keep their memory
        self._lately = -1  # the highest slot that was taken since the last `trim`
        self._used = -1  # the highest slot that may have memory

    def map(self, size: int) -> None:
        """Map the slots, once the side of the model's image is known."""
        if self._lease is None:
            os.ftruncate(self.descriptor, self.total * size * size * 3)
        self._memory, views = map_slots(self.descriptor, self.total, size)
        self.views = views[self.first :]

    def acquire(self, count: int, request_class: RequestClass = "interactive") -> list[int]:
        """Take `count` free slots; the caller has checked that the service may use so many."""
        assert count <= len(self._free)
        self.in_use += count
        self._images[request_class].own[0] += count
        taken = [heapq.heappop(self._free) for _ in range(count)]
        for slot in taken:
            self._holders[slot] = 1
            self._class_of[slot] = request_class
        self._lately = max(self._lately, *taken)
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
                heapq.heappush(self._free, slot)
                self.in_use -= 1
                self._images[self._class_of.pop(slot)].own[0] -= 1

    def trim(self) -> None:
        """Give back the memory of the free slots beyond the part of this process that were not used since last time."""
        used = max(self._used, self._lately)
        beyond = [slot for slot in range(self._part, used + 1) if self._holders[slot]]
        kept = max(self._part - 1, self._lately, *beyond[-1:])
        if kept < used:
            each = self.views[0].nbytes
            begin = -(-(self.first + kept + 1) * each // mmap.PAGESIZE) * mmap.PAGESIZE
            end = (self.first + used + 1) * each // mmap.PAGESIZE * mmap.PAGESIZE
            self._memory.madvise(mmap.MADV_REMOVE, begin, max(0, end - begin))
        self._used, self._lately = kept, -1

    def close(self) -> None:
        """Close the memory file; the kernel frees it when the last process that maps it has ended."""
        os.close(self.descriptor)
