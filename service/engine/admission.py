"""Who may come in: images and bytes of bodies, counted before anything is decoded, and what a refusal says.

An image counts while anybody holds its slot (`arena`), a byte from its arrival until its request has ended. Bulk may
fill a part of both, so that there is room for interactive whatever bulk does. Nothing here waits: what does not fit is
refused at once, and told when to come back.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from service.devices.slots import Arena
from service.engine.pace import Pace
from service.errors import BodyTooLarge, MemoryFull, Overload, QueueFull, TooManyImages
from service.jobs import RequestClass
from service.settings import Settings

log = logging.getLogger("vim.admission")

LONGEST_RETRY_S = 30
SMOOTHING = 0.1  # weight of the newest image in the running cost of decoding
LOG_EVERY_S = 10.0
CAUTION = 1.25  # an answer has to be sent as well, and a queue is not always as fast as it was


class Admission:
    """Counts what is in the service, by class. `device_s` tells the measured seconds an image costs the devices."""

    def __init__(self, settings: Settings, arena: Arena, threads: int, device_s: Callable[[], float]) -> None:
        self._settings = settings
        self._arena = arena
        self._threads = threads
        self._device_s = device_s
        self._decode_s = 0.0
        self._pace = Pace()
        self._held: dict[RequestClass, int] = {"interactive": 0, "bulk": 0}
        self._refused = 0
        self._logged_at = -math.inf

    def bytes_in_use(self, request_class: RequestClass) -> int:
        """Bytes of bodies in memory."""
        return self._held[request_class]

    def body(self, request_class: RequestClass) -> Body:
        """The account of one request's body."""
        return Body(self, request_class)

    def check(self, request_class: RequestClass, size: int) -> None:
        """At the door: raise what would refuse one image in so many bytes, now or for ever."""
        self._check_images(request_class, 1)
        self._check_bytes(request_class, size, size)

    def full(self) -> Overload | None:
        """What every request is told while not one image has room."""
        arena = self._arena
        return None if arena.in_use < arena.slots else self._refusal(QueueFull, self._queue_full("interactive"))

    def take_slots(self, request_class: RequestClass, count: int, allowed_s: float = math.inf) -> list[int]:
        """Slots for so many images, all or none, where they can be answered in the time that the request allows.

        Raises TooManyImages if that can never be, QueueFull if not now.
        """
        self._check_images(request_class, count)
        wait_s = self._pace.wait_s(self._arena.in_use)
        if wait_s * CAUTION > max(0.0, allowed_s):  # a time that is over already is answered as such
            self._refuse_late(wait_s, allowed_s)
        return self._arena.acquire(count, request_class)

    def answered(self, images: int) -> None:
        """Learn how fast those who are in are answered; their slots are still taken."""
        self._pace.answered(images, self._arena.in_use)

    def take_bytes(self, request_class: RequestClass, size: int, body: int) -> None:
        """So many bytes more, of a body that is so long now. Raises BodyTooLarge or MemoryFull, and counts nothing."""
        self._check_bytes(request_class, size, body)
        self._held[request_class] += size

    def free_bytes(self, request_class: RequestClass, size: int) -> None:
        """So many bytes fewer."""
        self._held[request_class] -= size

    def decoded(self, seconds: float) -> None:
        """Learn what an image costs a decode thread."""
        self._decode_s += (seconds - self._decode_s) * (SMOOTHING if self._decode_s else 1.0)

    @property
    def retry_after_s(self) -> int:
        """Whole seconds until all that is admitted now is answered, at the pace of the slowest stage; 1 to 30."""
        pace_s = max(self._device_s(), self._decode_s / self._threads)
        return min(LONGEST_RETRY_S, max(1, math.ceil(self._arena.in_use * pace_s)))

    def _part(self, request_class: RequestClass, whole: int) -> int:
        return whole if request_class == "interactive" else max(1, whole * self._settings.bulk_percent // 100)

    def _check_images(self, request_class: RequestClass, count: int) -> None:
        arena, limit = self._arena, self._part(request_class, self._arena.slots)
        if count > limit:
            setting = _named("VIM_QUEUE_IMAGES", request_class)
            raise TooManyImages(f"{count} images in one request; the limit is {limit} ({setting})")
        if count > arena.slots - arena.in_use or (
            request_class == "bulk" and count > limit - arena.in_use_by(request_class)
        ):
            raise self._refusal(QueueFull, self._queue_full(request_class))

    def _queue_full(self, request_class: RequestClass) -> str:
        arena, limit = self._arena, self._part(request_class, self._arena.slots)
        used = f"{arena.in_use} of {arena.slots} images admitted, {arena.in_use_by('bulk')} of them bulk"
        setting = _named("VIM_QUEUE_IMAGES", request_class)
        return f"queue full: {used}; for {request_class} {limit} at most ({setting})"

    def _refuse_late(self, wait_s: float, allowed_s: float) -> NoReturn:
        used = f"{self._arena.in_use} images are before this one, which takes about {1000 * wait_s:.0f} ms"
        raise self._refusal(
            QueueFull, f"queue too long: {used}; the request allows {1000 * max(0.0, allowed_s):.0f} ms"
        )

    def _check_bytes(self, request_class: RequestClass, size: int, body: int) -> None:
        whole = self._settings.queue_bytes
        limit, setting = self._part(request_class, whole), _named("VIM_QUEUE_BYTES", request_class)
        if body > limit:
            raise BodyTooLarge(f"the body has {body} bytes or more; the limit is {limit} ({setting})")
        total, bulk = sum(self._held.values()), self._held["bulk"]
        if size > whole - total or (request_class == "bulk" and size > limit - bulk):
            used = f"bodies of {total} of {whole} bytes in memory, {bulk} of them bulk"
            raise self._refusal(MemoryFull, f"memory full: {used}; for {request_class} {limit} at most ({setting})")

    def _refusal(self, kind: type[Overload], detail: str) -> Overload:
        self._refused += 1
        now = time.monotonic()
        if now - self._logged_at >= LOG_EVERY_S:
            log.warning("overloaded: %s; %d refused since this was last said", detail, self._refused)
            self._logged_at, self._refused = now, 0
        refusal = kind(detail, retry_after_s=self.retry_after_s)
        refusal.status = int(self._settings.overload_status)
        return refusal


@dataclass(slots=True)
class Body:
    """What one request's body has in memory."""

    admission: Admission
    request_class: RequestClass
    size: int = 0

    def expect(self, size: int) -> None:
        """Before the first byte is read: refuse what could not be taken in. Promises nothing, and costs nothing."""
        self.admission.check(self.request_class, size)

    def receive(self, size: int) -> None:
        """So many bytes came in. Raises BodyTooLarge or MemoryFull."""
        self.admission.take_bytes(self.request_class, size, self.size + size)
        self.size += size

    def release(self, size: int) -> None:
        """So many bytes are no longer needed, or as many as there are."""
        size = min(size, self.size)
        self.admission.free_bytes(self.request_class, size)
        self.size -= size

    def let_go(self) -> None:
        """The request has ended."""
        self.release(self.size)


def _named(setting: str, request_class: RequestClass) -> str:
    return setting if request_class == "interactive" else f"VIM_BULK_PERCENT of {setting}"
