"""Slots: decoded pixels in memory that the device processes share. One slot per image.

The memory is an anonymous file (memfd): no name to leak, no /dev/shm limit, and a restarted device process maps the
same pixels. Every loaded model has an area in it with pixels of its image size for all slots; memory that was never
written takes no space. Slots are also the admission limit: a request takes one for each image before any byte is
decoded (see `service.engine.admission`).

With several HTTP processes each has slots for all images that the service admits. The common count of images decides
how many slots one process may use. `trim` gives back memory that a process no longer uses beyond its part.
"""

from __future__ import annotations

import heapq
import mmap
import os
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from service.devices.usage import Usage
from service.jobs import Area, RequestClass


class Pixels(NamedTuple):
    """An area as one process has mapped it."""

    memory: mmap.mmap
    views: np.ndarray  # uint8 (slots, size, size, 3), writable


def map_area(descriptor: int, area: Area, slots: int) -> Pixels:
    """Map an area with this number of slots."""
    memory = mmap.mmap(descriptor, slots * area.slot_bytes, offset=area.offset)
    return Pixels(memory, np.frombuffer(memory, np.uint8).reshape(slots, area.size, area.size, 3))


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
        self.in_use_of: Counter[int] = Counter()  # images of this process by model: admitted and not yet answered
        self._lease = lease
        self._mapped: dict[Area, Pixels] = {}
        self._end = 0  # bytes in the memory file; it only grows, which costs nothing, because a removed area is empty
        self._free = list(range(count))  # a heap: the lowest slots are taken first
        self._holders = [0] * count
        self._counted: dict[int, tuple[RequestClass, int]] = {}  # class and model of the slots in use
        self._part = max(1, count // lease.processes) if lease else count  # slots that keep their memory
        self._lately = -1  # the highest slot that was taken since the last `trim`
        self._used = -1  # the highest slot that may have memory

    def add(self, size: int) -> Area:
        """Add an area for images with this side. Only the process that made the memory file may do that."""
        area = Area(self._end, size)
        pages = -(-self.total * area.slot_bytes // mmap.ALLOCATIONGRANULARITY)
        self._end += pages * mmap.ALLOCATIONGRANULARITY
        os.ftruncate(self.descriptor, self._end)
        return area

    def views(self, area: Area) -> np.ndarray:
        """The pixels of an area, uint8 (slots, size, size, 3); the first slot is the first of this process."""
        if area not in self._mapped:
            self._mapped[area] = map_area(self.descriptor, area, self.total)
        return self._mapped[area].views[self.first :]

    def forget(self, area: Area) -> None:
        """Unmap an area that this process no longer uses."""
        self._mapped.pop(area, None)

    def remove(self, area: Area) -> None:
        """Give back the memory of an area that no process uses."""
        map_area(self.descriptor, area, self.total).memory.madvise(mmap.MADV_REMOVE)
        self.forget(area)

    def acquire(self, count: int, request_class: RequestClass = "interactive", model: int = 0) -> list[int]:
        """Take `count` free slots; the caller has checked that the service may use so many. `model`: its number."""
        assert count <= len(self._free)
        self._count(request_class, model, count)
        taken = [heapq.heappop(self._free) for _ in range(count)]
        for slot in taken:
            self._holders[slot] = 1
            self._counted[slot] = request_class, model
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
                self._count(*self._counted.pop(slot), -1)

    @property
    def in_use(self) -> int:
        """Images of this process: admitted and not yet answered."""
        return self.in_use_of.total()

    def _count(self, request_class: RequestClass, model: int, images: int) -> None:
        self.in_use_of[model] += images
        self.usage.images[request_class].own[0] += images
        self.usage.images_of[model].own[0] += images

    def trim(self) -> None:
        """Give back the memory of the free slots beyond the part of this process that were not used since last time."""
        used = max(self._used, self._lately)
        beyond = [slot for slot in range(self._part, used + 1) if self._holders[slot]]
        kept = max(self._part - 1, self._lately, *beyond[-1:])
        if kept < used:
            for area, pixels in self._mapped.items():
                begin = -(-(self.first + kept + 1) * area.slot_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
                end = (self.first + used + 1) * area.slot_bytes // mmap.PAGESIZE * mmap.PAGESIZE
                pixels.memory.madvise(mmap.MADV_REMOVE, begin, max(0, end - begin))
        self._used, self._lately = kept, -1

    def close(self) -> None:
        """Close the memory file; the kernel frees it when the last process that maps it has ended."""
        os.close(self.descriptor)
