"""The memory that decoding threads share: one image needs little, but all threads together may need too much."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from service.errors import DeadlineExceeded


class MemoryBudget:
    """A number of bytes, reserved in the order of the requests, so that a large image is not overtaken for ever.

    `timeout_s` is how long a thread waits for its reservation.
    """

    def __init__(self, size: int, timeout_s: float) -> None:
        self._free = size
        self._timeout_s = timeout_s
        self._changed = threading.Condition()
        self._first_in_line = threading.Lock()  # its holder waits for memory; the others wait for the lock

    @property
    def contended(self) -> bool:
        """True while a thread waits for memory."""
        return self._first_in_line.locked()

    @contextmanager
    def reserve(self, size: int) -> Iterator[None]:
        """Reserve `size` bytes, at most the whole budget, while the context lasts. Blocks the thread.

        Raises DeadlineExceeded when they do not become free in time.
        """
        if not self._take(size, time.monotonic() + self._timeout_s):
            raise DeadlineExceeded("other images took all of the memory for decoding (VIM_MAX_DECODE_BYTES)")
        try:
            yield
        finally:
            with self._changed:
                self._free += size
                self._changed.notify()

    def _take(self, size: int, deadline: float) -> bool:
        if not self._first_in_line.acquire(timeout=self._timeout_s):
            return False
        try:
            with self._changed:
                enough = self._changed.wait_for(lambda: self._free >= size, deadline - time.monotonic())
                self._free -= size if enough else 0
                return enough
        finally:
            self._first_in_line.release()
