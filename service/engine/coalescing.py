"""Coalescing: identical images that are in flight at the same time are computed once.

The work does not belong to one request: it continues while any request waits for it. So a request is not affected when
another request disconnects or reaches its deadline, not even when that was the first one.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Hashable
from typing import Generic, TypeVar

import numpy as np

from service.jobs import Image, Job, RequestClass
from service.system import blocking

SMALL = 1 << 16  # bytes; smaller files are used as keys without hashing
LARGE = 1 << 20  # bytes; hashing this many takes half a millisecond, so it runs in a thread

T = TypeVar("T")


class Flight(Generic[T]):
    """The work on one image, for every request that sent it: decoding, then a job."""

    def __init__(self, key: Hashable, request_class: RequestClass) -> None:
        self.key = key
        self.request_class = request_class  # interactive if one of the requests is
        self.job: Job | None = None  # once the image is decoded
        self.task: asyncio.Task[T] | None = None
        self.waiting = 0  # requests


class Coalescing(Generic[T]):
    """The images in flight, by content and work."""

    def __init__(self) -> None:
        self._flights: dict[Hashable, Flight[T]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    async def enter(self, image: Image, work: Hashable, request_class: RequestClass) -> Flight[T]:
        """Return the flight that the request waits for. If it has no `task`, it is new, and the caller starts the work.

        `work` is the model and the task.

        An interactive request joins a bulk flight only if that has a job. The flight then becomes interactive, and the
        caller promotes the job. A bulk flight without a job would wait with bulk for decoding, so a new one starts.
        """
        key = (await content_key(image), work)
        flight = self._flights.get(key)
        urgent = flight is not None and flight.request_class == "bulk" and request_class == "interactive"
        if flight is None or (urgent and flight.job is None):
            flight = self._flights[key] = Flight(key, request_class)
        elif urgent:
            flight.request_class = "interactive"
        flight.waiting += 1
        return flight

    def leave(self, flight: Flight[T]) -> None:
        """A request no longer waits. When no other request waits, the work is cancelled."""
        flight.waiting -= 1
        if flight.waiting or flight.task is None:
            return
        flight.task.cancel()  # no effect if the work is done
        flight.task = None  # the task refers to its flight: the cycle would keep the image in memory
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]


async def content_key(image: Image) -> Hashable:
    """A key for the content of an image: the file or its hash; for pixels, their shape and hash."""
    if isinstance(image, bytes):
        return image if len(image) < SMALL else ("bytes", await _hashed(memoryview(image)))
    return image.shape, await _hashed(np.ascontiguousarray(image).reshape(-1).data)


async def _hashed(data: memoryview) -> bytes:
    hashed = hashlib.sha256(data) if data.nbytes < LARGE else await blocking.run(hashlib.sha256, data)
    return hashed.digest()
