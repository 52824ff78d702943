"""Memory that decoding threads share: one image's pixels are small, those of all threads together may not be."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from service.errors import DeadlineExceeded


class Room:
    """So many bytes; first come, first served, so that a large image is not passed over for ever.

    `patience_s` is how long a thread waits for its turn.
    """

    def __init__(self, size: int, patience_s: float) -> None:
        self._free = size
        self._patience_s = patience_s
        self._changed = threading.Condition()
        self._turn = threading.Lock()

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """While the context lasts so many bytes, at most as many as there are, are taken. Blocks the thread.

        Raises DeadlineExceeded when they do not get free in time.
        """
        if not self._take(size, time.monotonic() + self._patience_s):
            raise DeadlineExceeded("other images took all of the memory for decoding (VIM_MAX_DECODE_BYTES)")
        try:
            yield
        finally:
            with self._changed:
                self._free += size
                self._changed.notify()

    def _take(self, size: int, deadline: float) -> bool:
        if not self._turn.acquire(timeout=self._patience_s):
            return False
        try:
            with self._changed:
                enough = self._changed.wait_for(lambda: self._free >= size, deadline - time.monotonic())
                self._free -= size if enough else 0
                return enough
        finally:
            self._turn.release()
