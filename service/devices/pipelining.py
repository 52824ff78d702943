"""When a device that is at work may have its next batch: plain Python, no clock of its own.

One batch at a time, unless the device can take in the pixels of the next one while it computes. Then the next goes when
it is full, or when the running one is about to end: no earlier, because until then waiting images gather into a larger
batch. How long a batch takes is measured, by its size.

A suspect, an image whose batch has failed, flies alone: if the device dies again, nothing else can have been the cause.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from service.jobs import Job

SMOOTHING = 0.2  # weight of the newest batch in the time that its size is expected to take


@dataclass(slots=True, eq=False)
class Flight:
    """A batch that the device has."""

    jobs: tuple[Job, ...]
    began_at: float  # when it was handed over, or when the one before it ended, whichever is later
    shared: bool = False  # another batch was with the device at some time

    @property
    def alone(self) -> bool:
        """Must nothing else be with the device?"""
        return any(job.suspect for job in self.jobs)


class Handover:
    """The batches that one device has, oldest first. `batch_seconds`: what each size took in the warm-up."""

    def __init__(self, depth: int = 1, lead_s: float = 0.0, batch_seconds: Mapping[int, float] | None = None) -> None:
        self.flights: list[Flight] = []
        self._depth = depth
        self._lead_s = lead_s
        self._seconds = dict(sorted((batch_seconds or {}).items()))

    @property
    def jobs(self) -> tuple[Job, ...]:
        """All that are with the device."""
        return tuple(job for flight in self.flights for job in flight.jobs)

    def due_in(self, now: float, *, full: bool) -> float | None:
        """Seconds until the device may have another batch, which is a `full` one or not; None: not before one ends."""
        if not self.flights:
            return 0.0
        if len(self.flights) >= self._depth or any(flight.alone for flight in self.flights):
            return None
        running = self.flights[0]
        ends = running.began_at + self._expected(len(running.jobs))
        return 0.0 if full else max(0.0, ends - self._lead_s - now)

    def begin(self, jobs: tuple[Job, ...], now: float) -> Flight:
        """The device gets a batch."""
        flight = Flight(jobs, now, shared=bool(self.flights))
        for other in self.flights:
            other.shared = True
        self.flights.append(flight)
        return flight

    def end(self, flight: Flight, now: float) -> None:
        """The batch is answered, or has failed: the next one's time begins."""
        self.flights.remove(flight)
        for waiting in self.flights[:1]:
            waiting.began_at = max(waiting.began_at, now)

    def ran(self, images: int, seconds: float) -> None:
        """Learn from a batch that ran."""
        size = self._size_for(images)
        known = self._seconds.get(size, seconds)
        self._seconds[size] = known + SMOOTHING * (seconds - known)

    def _expected(self, images: int) -> float:
        return self._seconds.get(self._size_for(images), 0.0)

    def _size_for(self, images: int) -> int:
        return next((size for size in self._seconds if size >= images), images)
