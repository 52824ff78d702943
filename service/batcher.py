"""What runs next: plain Python, no clock of its own, no processes, no torch.

The device pulls: whenever it is free it takes the oldest waiting jobs, up to its largest batch. While it is busy jobs
gather by themselves, so there is no timer by default; with `max_wait_s` a batch that is not full is held back until its
oldest job has waited that long, counted from when it was queued (so time spent behind a busy device counts).
"""

from __future__ import annotations

import math

from service.jobs import Job

RATE_SMOOTHING = 0.2  # weight of the newest batch in the running rate


class Batcher:
    """Waiting jobs, oldest first."""

    def __init__(self, max_wait_s: float = 0.0) -> None:
        self._max_wait_s = max_wait_s
        self._waiting: dict[Job, None] = {}  # insertion-ordered, and any job leaves in constant time
        self._seconds_per_image = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, job: Job) -> None:
        """Queue a job."""
        self._waiting[job] = None

    def discard(self, job: Job) -> bool:
        """Drop a job that nobody waits for any more; False if it is not waiting here."""
        return self._waiting.pop(job, self) is None

    def due_in(self, limit: int, now: float) -> float | None:
        """Seconds until a batch of up to `limit` should go; 0 for at once, None while nothing waits."""
        if not self._waiting:
            return None
        if len(self._waiting) >= limit:
            return 0.0
        oldest = next(iter(self._waiting))
        return max(0.0, oldest.enqueued_at + self._max_wait_s - now)

    def take(self, limit: int) -> list[Job]:
        """Remove and return the oldest jobs, at most `limit`."""
        batch = [job for job, _ in zip(self._waiting, range(limit), strict=False)]
        for job in batch:
            del self._waiting[job]
        return batch

    def ran(self, images: int, seconds: float) -> None:
        """Learn the service rate from a batch that ran."""
        per_image = seconds / images
        known = self._seconds_per_image
        self._seconds_per_image = per_image if not known else known + RATE_SMOOTHING * (per_image - known)

    def seconds_for(self, images: int) -> int:
        """Whole seconds, at least one, until `images` will have run at the measured rate."""
        return max(1, math.ceil(images * self._seconds_per_image))
