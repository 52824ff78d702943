"""Admission control: decides, before decoding, whether a request may enter: by images, bytes and expected wait.

With several models each has a guaranteed part of both limits, so that a flood on one does not shut out the others.
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
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from service.devices.usage import ByClass
from service.engine.backend import Backend
from service.errors import BodyTooLarge, MemoryFull, Overload, QueueFull, TooManyImages
from service.jobs import RequestClass
from service.settings import Settings
from service.status import ModelState
from service.system.shared_counts import SharedCount

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
ALONE = ModelState()


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


class Quota:
    """A limit for all models and both request classes, with a guaranteed part for each model and less for bulk.

    `largest`: what one request may use; the guaranteed parts leave room for it.
    """

    def __init__(
        self, limit: int, largest: int, bulk_percent: int, by_class: ByClass, by_model: Sequence[SharedCount]
    ) -> None:
        self._limit = limit
        self._spare = max(0, limit - largest)
        self._bulk = max(1, limit * bulk_percent // 100)
        self._by_class, self._by_model = by_class, by_model

    @property
    def used(self) -> int:
        """The sum over all models and HTTP processes."""
        return self.used_by("interactive") + self.used_by("bulk")

    def used_by(self, request_class: RequestClass) -> int:
        """The sum of one class."""
        return sum(self._by_class[request_class].parts)

    def used_of(self, model: int) -> int:
        """The sum of one model."""
        return sum(self._by_model[model].parts)

    def most(self, request_class: RequestClass) -> int:
        """The most that a class may use."""
        return self._limit if request_class == "interactive" else self._bulk

    def has_room(self, request_class: RequestClass, model: int, models: Sequence[int], size: int) -> bool:
        """Return whether `size` more fit. The other models keep what is guaranteed to them, used or not."""
        if request_class == "bulk" and self.used_by("bulk") + size > self._bulk:
            return False
        kept = self.kept(model, models) if len(models) > 1 else 0
        return self.used + size + kept <= self._limit

    def kept(self, model: int, models: Sequence[int]) -> int:
        """What the other models may still use of their guaranteed parts."""
        guaranteed = self._guaranteed(models)
        return sum([max(0, guaranteed - self.used_of(other)) for other in models if other != model])

    def _guaranteed(self, models: Sequence[int]) -> int:
        """Half of an equal share, so that a flood on one model leaves room for the others."""
        return min(self._limit // (2 * len(models)), self._spare // (len(models) - 1)) if len(models) > 1 else 0


class Admission:
    """Counts images and bytes by class and model. `threads`: the decoding threads of all HTTP processes."""

    def __init__(self, settings: Settings, backend: Backend, threads: int) -> None:
        usage = backend.slots.usage
        self._settings = settings
        self._backend = backend
        self._slots = backend.slots
        self._bytes = usage.body_bytes, usage.body_bytes_of
        bulk = settings.bulk_percent
        self._images = Quota(backend.slots.count, settings.max_images, bulk, usage.images, usage.images_of)
        self._memory = Quota(settings.queue_bytes, settings.max_body_bytes, bulk, *self._bytes)
        self._threads = threads
        self._decode_s = 0.0
        self.paces: dict[int, Pace] = defaultdict(Pace)  # by the number of the model
        self._refused = 0
        self._logged_at = -math.inf

    def admit(
        self, request_class: RequestClass, count: int, allowed_s: float = math.inf, model: ModelState = ALONE
    ) -> list[int]:
        """Take slots for all images of a request, if they can be answered within `allowed_s`.

        Raises TooManyImages if the request can never be admitted, QueueFull if it cannot be admitted now.
        """
        number = model.id.number
        self._check_images(request_class, number, count)
        before = self._images.used_of(number)
        pace_s = self.paces[number].wait_s(self._slots.in_use_of[number])
        wait_s = max(pace_s, before * model.least_image_s)
        if wait_s * CAUTION > max(0.0, allowed_s):  # a deadline in the past counts as 0
            waiting = f"{before} images are before this one, which takes about {1000 * wait_s:.0f} ms"
            allowed = f"the request allows {1000 * max(0.0, allowed_s):.0f} ms"
            raise self._refusal(QueueFull, f"queue too long: {waiting}; {allowed}")
        slots = self._slots.acquire(count, request_class, number)
        if not self._images.has_room(request_class, number, self._models, 0):  # another process admitted some too
            self._slots.release(*slots)
            raise self._refusal(QueueFull, self._queue_full(request_class, number))
        return slots

    def decoded(self, seconds: float, model: int = 0) -> None:
        """Update the cost of decoding with one decoded image of a model."""
        self._decode_s += (seconds - self._decode_s) * (SMOOTHING if self._decode_s else 1.0)
        self.paces[model].decoded(seconds)

    def leave(self, slots: Sequence[int], model: int = 0, *, answered: bool) -> None:
        """Release the slots of a request that has ended, and update the pace of its model."""
        if answered:
            self.paces[model].answered(len(slots), self._slots.in_use_of[model])
        self._slots.release(*slots)

    def expect(self, request_class: RequestClass, model: int, size: int) -> None:
        """Before a body is read: refuse it if the body or one image could not be admitted. Reserves nothing."""
        self._check_images(request_class, model, 1)
        self._check_bytes(request_class, model, size, size)

    def receive(self, request_class: RequestClass, model: int, size: int, body: int) -> None:
        """Count `size` more bytes of a body that has `body` bytes now. Raises BodyTooLarge or MemoryFull."""
        self._check_bytes(request_class, model, size, body)
        self.take(request_class, model, size)
        if not self._memory.has_room(request_class, model, self._models, 0):  # another process received some too
            self.free(request_class, model, size)
            raise self._refusal(MemoryFull, self._memory_full(request_class, model))

    def free(self, request_class: RequestClass, model: int, size: int) -> None:
        """Count `size` bytes of a body as free."""
        self.take(request_class, model, -size)

    def take(self, request_class: RequestClass, model: int, size: int) -> None:
        """Count `size` bytes without a check."""
        by_class, by_model = self._bytes
        by_class[request_class].own[0] += size
        by_model[model].own[0] += size

    @property
    def images(self) -> int:
        """Images that were admitted and are not yet answered, of all HTTP processes."""
        return self._images.used

    @property
    def retry_after_s(self) -> int:
        """Whole seconds until all admitted images are answered, by the slowest stage; 1 to 30."""
        seconds = self._backend.seconds_per_image
        models = [one.id for one in self._backend.state.models]
        computing_s = sum([self._images.used_of(one.number) * seconds.get(one.key, 0.0) for one in models])
        waiting_s = max(computing_s, self.images * self._decode_s / self._threads)
        return min(LONGEST_RETRY_S, max(1, math.ceil(waiting_s)))

    @property
    def _models(self) -> list[int]:
        """The models that have a guaranteed part."""
        return [one.id.number for one in self._backend.state.models if not one.failure]

    def _check_images(self, request_class: RequestClass, model: int, count: int) -> None:
        if count > (limit := self._images.most(request_class)):
            setting = _named("VIM_QUEUE_IMAGES", request_class)
            raise TooManyImages(f"{count} images in one request; the limit is {limit} ({setting})")
        if not self._images.has_room(request_class, model, self._models, count):
            raise self._refusal(QueueFull, self._queue_full(request_class, model))

    def _queue_full(self, request_class: RequestClass, model: int) -> str:
        images, limit = self._images, self._images.most(request_class)
        used = f"{images.used} of {self._slots.count} images admitted, {images.used_by('bulk')} of them bulk"
        setting = _named("VIM_QUEUE_IMAGES", request_class)
        kept = _kept(images.kept(model, self._models))
        return f"queue full: {used}{kept}; for {request_class} {limit} at most ({setting})"

    def _check_bytes(self, request_class: RequestClass, model: int, size: int, body: int) -> None:
        if body > (limit := self._memory.most(request_class)):
            setting = _named("VIM_QUEUE_BYTES", request_class)
            raise BodyTooLarge(f"the body has {body} bytes or more; the limit is {limit} ({setting})")
        if not self._memory.has_room(request_class, model, self._models, size):
            raise self._refusal(MemoryFull, self._memory_full(request_class, model))

    def _memory_full(self, request_class: RequestClass, model: int) -> str:
        memory, limit = self._memory, self._memory.most(request_class)
        whole = self._settings.queue_bytes
        used = f"bodies of {memory.used} of {whole} bytes in memory, {memory.used_by('bulk')} of them bulk"
        setting = _named("VIM_QUEUE_BYTES", request_class)
        kept = _kept(memory.kept(model, self._models))
        return f"memory full: {used}{kept}; for {request_class} {limit} at most ({setting})"

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
    """The bytes of one request's body that are in memory. `model`: the number of the model that the request is for."""

    admission: Admission
    request_class: RequestClass
    model: int = 0
    size: int = 0

    def expect(self, size: int) -> None:
        """Before the first byte is read: refuse a body that could not be admitted. Reserves nothing."""
        self.admission.expect(self.request_class, self.model, size)

    def receive(self, size: int) -> None:
        """Count `size` bytes that have arrived. Raises BodyTooLarge or MemoryFull."""
        self.admission.receive(self.request_class, self.model, size, self.size + size)
        self.size += size

    def release(self, size: int) -> None:
        """Count `size` bytes as free, at most all of them."""
        size = min(size, self.size)
        self.admission.free(self.request_class, self.model, size)
        self.size -= size

    def move(self, model: int) -> None:
        """Count the bytes for another model: the body has named it."""
        self.admission.free(self.request_class, self.model, self.size)
        self.admission.take(self.request_class, model, self.size)
        self.model = model

    def close(self) -> None:
        """Count all bytes as free: the request has ended."""
        self.release(self.size)


def _named(setting: str, request_class: RequestClass) -> str:
    return setting if request_class == "interactive" else f"VIM_BULK_PERCENT of {setting}"


def _kept(amount: int) -> str:
    return f", {amount} kept for other models" if amount else ""
