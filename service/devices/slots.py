"""Decoded pixels in memory shared with the device processes: one slot an image, uint8 (size, size, 3).

The memory is an anonymous file (memfd): no name to leak, no /dev/shm limit, and a restarted device process maps the
same pixels. Slots are also the admission limit: a request takes one for every image before any byte is decoded
(`admission` says who may).
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass

import numpy as np

from service.jobs import RequestClass


class Pixels:
    """The mapped slots; both sides of the device boundary look at them through this."""

    def __init__(self, descriptor: int, slots: int, size: int, first: int = 0) -> None:
        self._map = mmap.mmap(descriptor, slots * size * size * 3)
        self._slots: np.ndarray = np.frombuffer(self._map, np.uint8).reshape(slots, size, size, 3)[first:]

    @property
    def all(self) -> np.ndarray:
        """A view of every slot: uint8 (slots, size, size, 3)."""
        return self._slots

    def slot(self, index: int) -> np.ndarray:
        """A writable view of one slot: uint8 (size, size, 3)."""
        view: np.ndarray = self._slots[index]
        return view


@dataclass(frozen=True, slots=True)
class Lease:
    """What an HTTP process has of an arena that belongs to its parent: slots from `first` on."""

    descriptor: int
    first: int
    total: int  # slots of the whole arena


class Arena:
    """Counts who holds each slot; a slot is free again when its last holder lets go."""

    def __init__(self, slots: int, lease: Lease | None = None) -> None:
        self.descriptor = lease.descriptor if lease else os.memfd_create("vim-pixels")
        self.slots = slots
        self._lease = lease
        self._free = list(range(slots - 1, -1, -1))
        self._holders = [0] * slots
        self._class_of: dict[int, RequestClass] = {}  # of the slots in use
        self._in_use: dict[RequestClass, int] = {"interactive": 0, "bulk": 0}
        self._pixels: Pixels | None = None

    def map(self, size: int) -> None:
        """Give the slots their size, once it is known, and map them."""
        if self._lease:
            self._pixels = Pixels(self.descriptor, self._lease.total, size, self._lease.first)
            return
        os.ftruncate(self.descriptor, self.total * size * size * 3)
        self._pixels = Pixels(self.descriptor, self.total, size)

    @property
    def canary_slot(self) -> int:
        """A slot beside those for requests, for the image whose answer is known."""
        return self.slots

    @property
    def total(self) -> int:
        """All slots, the canary's included."""
        return self.slots + 1

    @property
    def pixels(self) -> Pixels:
        """The mapped slots. Only after `map`."""
        assert self._pixels is not None
        return self._pixels

    @property
    def in_use(self) -> int:
        """Number of slots held: images admitted and not yet answered."""
        return self.slots - len(self._free)

    def in_use_by(self, request_class: RequestClass) -> int:
        """The same, of one class."""
        return self._in_use[request_class]

    def acquire(self, count: int, request_class: RequestClass = "interactive") -> list[int]:
        """Take `count` free slots; there must be so many."""
        assert count <= len(self._free)
        taken = [self._free.pop() for _ in range(count)]
        self._in_use[request_class] += count
        for slot in taken:
            self._holders[slot] = 1
            self._class_of[slot] = request_class
        return taken

    def hold(self, slot: int) -> None:
        """One more holder of a slot that is in use."""
        self._holders[slot] += 1

    def release(self, slot: int) -> None:
        """One holder fewer; the last one frees the slot."""
        self._holders[slot] -= 1
        assert self._holders[slot] >= 0
        if self._holders[slot] == 0:
            self._free.append(slot)
            self._in_use[self._class_of.pop(slot)] -= 1

    def close(self) -> None:
        """Close the memory file; the kernel frees it when the last process that maps it is gone."""
        os.close(self.descriptor)
