"""Coalescing: identical images that are in flight at the same time are computed once.

The work belongs to no request: it goes on as long as any request waits for it. So a request is not affected when
another one leaves or reaches its deadline, not even the one that came first.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Hashable
from typing import Generic, TypeVar

import numpy as np

from service.jobs import Image, Job, RequestClass, Task

SMALL = 1 << 16  # bytes; smaller images are their own keys
LARGE = 1 << 20  # bytes; hashing as many takes half a millisecond

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
    """The images in flight, by content and task."""

    def __init__(self) -> None:
        self._flights: dict[Hashable, Flight[T]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    async def enter(self, image: Image, task: Task, request_class: RequestClass) -> Flight[T]:
        """The flight that the request waits for. It is new if it has no `task`: then the caller starts the work.

        An interactive request joins the flight of a bulk one if that has a job, which the caller then promotes: its
        class differs from the flight's. Before there is a job it starts anew, so that it does not wait with bulk.
        """
        key = (await content_key(image), task)
        flight = self._flights.get(key)
        urgent = flight is not None and flight.request_class == "bulk" and request_class == "interactive"
        if flight is None or (urgent and flight.job is None):
            flight = self._flights[key] = Flight(key, request_class)
        elif urgent:
            flight.request_class = "interactive"
        flight.waiting += 1
        return flight

    def leave(self, flight: Flight[T]) -> None:
        """A request no longer waits: the last one to leave ends the work."""
        flight.waiting -= 1
        if flight.waiting or flight.task is None:
            return
        flight.task.cancel()  # does nothing to work that is done
        flight.task = None  # the task refers to its flight: the cycle would keep the image in memory
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]


async def content_key(image: Image) -> Hashable:
    """Distinguishes images: the encoded bytes or a hash of them, or of pixels and their shape."""
    if isinstance(image, bytes):
        return image if len(image) < SMALL else ("bytes", await _hashed(memoryview(image)))
    return image.shape, await _hashed(np.ascontiguousarray(image).reshape(-1).data)


async def _hashed(data: memoryview) -> bytes:
    hashed = hashlib.sha256(data) if data.nbytes < LARGE else await asyncio.to_thread(hashlib.sha256, data)
    return hashed.digest()
