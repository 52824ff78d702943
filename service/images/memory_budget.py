"""The memory that decoding threads share: one image needs little, but all threads together may need too much."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from service.errors import DeadlineExceeded
from service.system.shared_counts import SharedCount, alone

POLL_S = 0.01  # how often a waiting thread checks for memory that other processes have released


class MemoryBudget:
    """A number of bytes, reserved in the order of the requests, so that a large image does not wait for ever.

    `timeout_s` is how long a thread waits for its reservation. Several HTTP processes share the bytes by two counts:
    `reserved`, and `since`, the time at which the first thread in line began to wait. The process that waits longest
    reserves first.
    """

    def __init__(
        self, size: int, timeout_s: float, reserved: SharedCount | None = None, since: SharedCount | None = None
    ) -> None:
        self._size = size
        self._timeout_s = timeout_s
        self._reserved = reserved or alone()[0]
        self._since = since or alone()[0]
        self._changed = threading.Condition()
        self._first_in_line = threading.Lock()  # its holder waits for memory; the others wait for the lock

    @contextmanager
    def reserve(self, size: int) -> Iterator[None]:
        """Reserve `size` bytes, at most the whole budget, while the context lasts. Blocks the thread.

        Raises DeadlineExceeded when they do not become free in time.
        """
        if not self._take(size):
            raise DeadlineExceeded("other images took all of the memory for decoding (VIM_MAX_DECODE_BYTES)")
        try:
            yield
        finally:
            with self._changed:
                self._reserved.own[0] -= size
                self._changed.notify()

    def _take(self, size: int) -> bool:
        deadline = time.monotonic() + self._timeout_s
        if not self._first_in_line.acquire(timeout=self._timeout_s):
            return False
        try:
            with self._changed:
                while not (taken := self._try(size)) and time.monotonic() < deadline:
                    if not self._since.own[0]:
                        self._since.own[0] = time.monotonic_ns()
                    self._changed.wait(POLL_S)
            return taken
        finally:
            self._since.own[0] = 0
            self._first_in_line.release()

    def _try(self, size: int) -> bool:
        """Reserve the bytes if they are free and no other process waits for longer."""
        now = self._since.own[0] or time.monotonic_ns()
        if any(0 < since < now for since in self._since.parts):
            return False
        self._reserved.own[0] += size
        if sum(self._reserved.parts) <= self._size:
            return True
        self._reserved.own[0] -= size
        return False
