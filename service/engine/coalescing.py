"""Identical images that are on their way together are computed once.

The work belongs to nobody: whoever sends an image that is in flight already waits for the same work, which goes on as
long as anybody waits for it. So nobody is harmed when another client leaves or its deadline passes, not even the first.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

import numpy as np

from service.api.request.image_fields import Image
from service.jobs import Job, RequestClass

SMALL = 1 << 16  # bytes; such images are their own keys
LARGE = 1 << 20  # bytes; hashing so many takes half a millisecond

T = TypeVar("T")


async def key_of(image: Image) -> Hashable:
    """What tells two images apart: the encoded bytes or a hash of them, or of pixels and their shape."""
    if isinstance(image, bytes):
        return image if len(image) < SMALL else ("bytes", await _hashed(memoryview(image)))
    return image.shape, await _hashed(np.ascontiguousarray(image).reshape(-1).data)


async def _hashed(data: memoryview) -> bytes:
    hashed = hashlib.sha256(data) if data.nbytes < LARGE else await asyncio.to_thread(hashlib.sha256, data)
    return hashed.digest()


class Flight(Generic[T]):
    """One image on its way, for everyone who sent it: decoded first, then a job."""

    def __init__(self, request_class: RequestClass) -> None:
        self.request_class = request_class  # the most urgent of those who wait
        self.job: Job | None = None
        self.waiting = 0
        self.task: asyncio.Task[T]


class Flights(Generic[T]):
    """Those that are on their way now. `hurry` is told when an interactive request joins the job of a bulk one."""

    def __init__(self, hurry: Callable[[Job], None]) -> None:
        self._hurry = hurry
        self._flights: dict[Hashable, Flight[T]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    async def share(
        self,
        key: Hashable,
        request_class: RequestClass,
        start: Callable[[Flight[T]], Coroutine[Any, Any, T]],
        ended: Callable[[], None],
    ) -> tuple[T, bool]:
        """The result of the flight of this key, and whether it was in flight already.

        Otherwise `start` is called for it, and `ended` when it has landed or was given up.
        """
        flight = self._flights.get(key)
        joined = flight is not None and self._may_join(flight, request_class)
        if flight is None or not joined:
            flight = self._flights[key] = Flight(request_class)
            flight.task = asyncio.create_task(start(flight))
            flight.task.add_done_callback(lambda _: ended())
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task), joined
        finally:
            flight.waiting -= 1
            if not flight.waiting:
                self._end(key, flight)

    def _end(self, key: Hashable, flight: Flight[T]) -> None:
        flight.task.cancel()  # nobody waits; does nothing to one that has landed
        del flight.task  # which knows its flight: what is cancelled would lie in memory with its image, as a cycle does
        if self._flights.get(key) is flight:
            del self._flights[key]

    def _may_join(self, flight: Flight[T], request_class: RequestClass) -> bool:
        """An interactive image hurries a bulk one's job. Before there is one it starts anew, not to wait with bulk."""
        if flight.request_class == "interactive" or request_class == "bulk":
            return True
        if flight.job is None:
            return False
        flight.request_class = "interactive"
        self._hurry(flight.job)
        return True
