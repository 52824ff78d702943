"""Admission control: decides, before decoding, whether a request may enter: by images, bytes and expected wait.

An image is counted while its slot has a holder (`service.devices.slots`), a byte from its arrival until its request has
ended. Bulk may use only a part of both, so that there is room for interactive requests. No request waits here: one that
does not fit is refused at once, and `Retry-After` says when to try again.

Several HTTP processes share the limits (`service.devices.usage`). Each adds to the counts first and then compares the
sums, so that two that do this at the same time never exceed a limit together.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from service.engine.backend import Backend
from service.errors import BodyTooLarge, MemoryFull, Overload, QueueFull, TooManyImages
from service.jobs import RequestClass
from service.settings import Settings

log = logging.getLogger("vim.admission")

LONGEST_RETRY_S = 30
SMOOTHING = 0.1  # weight of the newest image in the running cost of decoding
LOG_EVERY_S = 10.0  # at most one log line about overload in this time
CAUTION = 1.25  # factor on the expected wait: the answer must be sent too, and the queue may become slower
RELIABLE_IMAGES = 16  # see `Pace`
RECENT_S, RECENT_IMAGES = 2.0, 32
FIRST_IMAGES = 8  # measured before the first prediction: the first image alone may be unusually expensive
OLD_S = 30.0  # after a pause of this length the earlier measurements are discarded
# A gap counts as at most this many times the known pace, unless decoding explains it. The restart of a device process
# causes such a gap.
LONGEST_GAP = 10.0


class Pace:
    """The measured time per image of a long queue, from how fast its images are answered. Plain Python.

    It is the mean of the last images: of `RECENT_S` seconds, but at least of `RECENT_IMAGES`. A weighted mean would
    count expensive images for too long, or not long enough while cheap and expensive ones alternate.

    With fewer than `RELIABLE_IMAGES` admitted images the estimate is unreliable: a single image takes longer than its
    share of a batch, and between single images the device is idle. Then nothing is measured or predicted.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._gaps: deque[tuple[float, int]] = deque()  # seconds before an answer, and the images in it
        self._seconds, self._images = 0.0, 0  # the sums
        self._slowest_s = 0.0  # the longest decoding since the last answer
        self._at = -math.inf
        self._many = False  # at the last answer, RELIABLE_IMAGES or more were admitted

    def decoded(self, seconds: float) -> None:
        """Record that decoding an image took this long, which explains a gap of this length."""
        self._slowest_s = max(self._slowest_s, seconds)

    def answered(self, images: int, waiting: int) -> None:
        """Record that `images` images were answered while `waiting` images were admitted."""
        now, many = self._clock(), waiting >= RELIABLE_IMAGES
        if now - self._at > OLD_S:
            self._forget()
        elif many and self._many:
            self._learn(images, now - self._at)
        self._at, self._many, self._slowest_s = now, many, 0.0

    def wait_s(self, waiting: int) -> float:
        """Seconds until `waiting` images are answered; 0 while the estimate is unreliable."""
        if waiting < RELIABLE_IMAGES or self._images < FIRST_IMAGES or self._clock() - self._at > OLD_S:
            return 0.0
        return waiting * self._seconds / self._images

    def _learn(self, images: int, seconds: float) -> None:
        if self._images >= FIRST_IMAGES:
            seconds = min(seconds, max(LONGEST_GAP * self._seconds / self._images, self._slowest_s))
        self._add(seconds, images)
        self._gaps.append((seconds, images))
        while self._seconds - self._gaps[0][0] >= RECENT_S and self._images - self._gaps[0][1] >= RECENT_IMAGES:
            oldest_s, oldest = self._gaps.popleft()
            self._add(-oldest_s, -oldest)

    def _add(self, seconds: float, images: int) -> None:
        self._seconds += seconds
        self._images += images

    def _forget(self) -> None:
        self._gaps.clear()
        self._seconds, self._images = 0.0, 0


class Admission:
    """Counts images and bytes by class. `threads`: the decoding threads of all HTTP processes."""

    def __init__(self, settings: Settings, backend: Backend, threads: int) -> None:
        self._settings = settings
        self._backend = backend
        self._slots = backend.slots
        self._images, self._body_bytes = backend.slots.usage.images, backend.slots.usage.body_bytes
        self._threads = threads
        self._decode_s = 0.0
        self.pace = Pace()
        self._refused = 0
        self._logged_at = -math.inf

    def admit(self, request_class: RequestClass, count: int, allowed_s: float = math.inf) -> list[int]:
        """Take slots for all images of a request, if they can be answered within `allowed_s`.

        Raises TooManyImages if the request can never be admitted, QueueFull if it cannot be admitted now.
        """
        self._check_images(request_class, count)
        before = self.images
        wait_s = max(self.pace.wait_s(self._slots.in_use), before * self._backend.state.least_image_s)
        if wait_s * CAUTION > max(0.0, allowed_s):  # a deadline in the past counts as 0
            waiting = f"{before} images are before this one, which takes about {1000 * wait_s:.0f} ms"
            allowed = f"the request allows {1000 * max(0.0, allowed_s):.0f} ms"
            raise self._refusal(QueueFull, f"queue too long: {waiting}; {allowed}")
        slots = self._slots.acquire(count, request_class)
        if not self._room_for(request_class, 0):  # another process has admitted images at the same time
            self._slots.release(*slots)
            raise self._refusal(QueueFull, self._queue_full(request_class))
        return slots

    def decoded(self, seconds: float) -> None:
        """Update the cost of decoding with one decoded image."""
        self._decode_s += (seconds - self._decode_s) * (SMOOTHING if self._decode_s else 1.0)
        self.pace.decoded(seconds)

    def leave(self, slots: Sequence[int], *, answered: bool) -> None:
        """Release the slots of a request that has ended, and update the pace."""
        if answered:
            self.pace.answered(len(slots), self._slots.in_use)
        self._slots.release(*slots)

    def expect(self, request_class: RequestClass, size: int) -> None:
        """Before a body is read: refuse it if the body or one image could not be admitted. Reserves nothing."""
        self._check_images(request_class, 1)
        self._check_bytes(request_class, size, size)

    def receive(self, request_class: RequestClass, size: int, body: int) -> None:
        """Count `size` more bytes of a body that has `body` bytes now. Raises BodyTooLarge or MemoryFull."""
        self._check_bytes(request_class, size, body)
        self._body_bytes[request_class].own[0] += size
        if not self._memory_for(request_class, 0):  # another process has received bytes at the same time
            self._body_bytes[request_class].own[0] -= size
            raise self._refusal(MemoryFull, self._memory_full(request_class))

    def free(self, request_class: RequestClass, size: int) -> None:
        """Count `size` bytes of a body as free."""
        self._body_bytes[request_class].own[0] -= size

    @property
    def images(self) -> int:
        """Images that were admitted and are not yet answered, of all HTTP processes."""
        return sum(self._images["interactive"].parts) + sum(self._images["bulk"].parts)

    @property
    def retry_after_s(self) -> int:
        """Whole seconds until all admitted images are answered, by the slowest stage; 1 to 30."""
        pace_s = max(self._backend.seconds_per_image, self._decode_s / self._threads)
        return min(LONGEST_RETRY_S, max(1, math.ceil(self.images * pace_s)))

    def _part(self, request_class: RequestClass, whole: int) -> int:
        return whole if request_class == "interactive" else max(1, whole * self._settings.bulk_percent // 100)

    def _check_images(self, request_class: RequestClass, count: int) -> None:
        limit = self._part(request_class, self._slots.count)
        if count > limit:
            setting = _named("VIM_QUEUE_IMAGES", request_class)
            raise TooManyImages(f"{count} images in one request; the limit is {limit} ({setting})")
        if not self._room_for(request_class, count):
            raise self._refusal(QueueFull, self._queue_full(request_class))

    def _room_for(self, request_class: RequestClass, count: int) -> bool:
        if request_class == "bulk" and sum(self._images["bulk"].parts) + count > self._part("bulk", self._slots.count):
            return False
        return self.images + count <= self._slots.count

    def _queue_full(self, request_class: RequestClass) -> str:
        slots, limit = self._slots, self._part(request_class, self._slots.count)
        used = f"{self.images} of {slots.count} images admitted, {sum(self._images['bulk'].parts)} of them bulk"
        setting = _named("VIM_QUEUE_IMAGES", request_class)
        return f"queue full: {used}; for {request_class} {limit} at most ({setting})"

    def _check_bytes(self, request_class: RequestClass, size: int, body: int) -> None:
        if body > (limit := self._part(request_class, self._settings.queue_bytes)):
            setting = _named("VIM_QUEUE_BYTES", request_class)
            raise BodyTooLarge(f"the body has {body} bytes or more; the limit is {limit} ({setting})")
        if not self._memory_for(request_class, size):
            raise self._refusal(MemoryFull, self._memory_full(request_class))

    def _memory_for(self, request_class: RequestClass, size: int) -> bool:
        whole, counts = self._settings.queue_bytes, self._body_bytes
        bulk = sum(counts["bulk"].parts)
        if request_class == "bulk" and bulk + size > self._part("bulk", whole):
            return False
        return sum(counts["interactive"].parts) + bulk + size <= whole

    def _memory_full(self, request_class: RequestClass) -> str:
        whole, counts = self._settings.queue_bytes, self._body_bytes
        limit, bulk = self._part(request_class, whole), sum(counts["bulk"].parts)
        used = f"bodies of {sum(counts['interactive'].parts) + bulk} of {whole} bytes in memory, {bulk} of them bulk"
        setting = _named("VIM_QUEUE_BYTES", request_class)
        return f"memory full: {used}; for {request_class} {limit} at most ({setting})"

    def _refusal(self, kind: type[Overload], detail: str) -> Overload:
        self._refused += 1
        now = time.monotonic()
        if now - self._logged_at >= LOG_EVERY_S:
            log.warning("overloaded: %s; requests refused since the last such message: %d", detail, self._refused)
            self._logged_at, self._refused = now, 0
        refusal = kind(detail, retry_after_s=self.retry_after_s)
        refusal.status = int(self._settings.overload_status)
        return refusal


@dataclass(slots=True)
class BodyAccount:
    """The bytes of one request's body that are in memory."""

    admission: Admission
    request_class: RequestClass
    size: int = 0

    def expect(self, size: int) -> None:
        """Before the first byte is read: refuse a body that could not be admitted. Reserves nothing."""
        self.admission.expect(self.request_class, size)

    def receive(self, size: int) -> None:
        """Count `size` bytes that have arrived. Raises BodyTooLarge or MemoryFull."""
        self.admission.receive(self.request_class, size, self.size + size)
        self.size += size

    def release(self, size: int) -> None:
        """Count `size` bytes as free, at most all of them."""
        size = min(size, self.size)
        self.admission.free(self.request_class, size)
        self.size -= size

    def close(self) -> None:
        """Count all bytes as free: the request has ended."""
        self.release(self.size)


def _named(setting: str, request_class: RequestClass) -> str:
    return setting if request_class == "interactive" else f"VIM_BULK_PERCENT of {setting}"
