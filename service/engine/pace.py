"""How long those who are in will take to be answered, learned from how fast they are while many wait.

Plain Python. Few tell nothing: an image alone takes longer than its share of a batch, and between two that come singly
nobody works. So nothing is learned, and nothing foretold, while fewer than `MANY` images are in.
"""

from __future__ import annotations

import time
from collections.abc import Callable

MANY = 16
SMOOTHING = 0.02  # weight of an answered image; the images of a batch are answered in one moment
MOST = 10.0  # times the known pace that one image counts: a device process that is replaced is no pace


class Pace:
    """Seconds for each image of those that wait together."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seconds = 0.0
        self._at = 0.0
        self._many = False  # were there, when the last one was answered?

    def answered(self, images: int, waiting: int) -> None:
        """So many were answered, of so many that were in until then."""
        now, many = self._clock(), waiting >= MANY
        if many and self._many:
            self._learn(images, (now - self._at) / images)
        self._at, self._many = now, many

    def wait_s(self, waiting: int) -> float:
        """How long it takes until so many are answered."""
        return waiting * self._seconds if waiting >= MANY else 0.0

    def _learn(self, images: int, seconds: float) -> None:
        known = self._seconds or seconds
        weight = 1 - (1 - SMOOTHING) ** images
        self._seconds = known + weight * (min(seconds, MOST * known) - known)
