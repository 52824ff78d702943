"""What runs next: plain Python, no clock of its own, no processes, no torch.

The device pulls: whenever it is free it takes the oldest waiting jobs, up to its largest batch. While it is busy jobs
gather by themselves, so there is no timer by default; with `max_wait_s` a batch that is not full is held back until its
oldest job has waited that long, counted from when it was queued (so time spent behind a busy device counts).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

from service.jobs import Job

RATE_SMOOTHING = 0.2  # weight of the newest batch in the running rate


class Batcher:
    """Waiting jobs, oldest first."""

    def __init__(self, max_wait_s: float = 0.0) -> None:
        self._max_wait_s = max_wait_s
        self._waiting: dict[Job, None] = {}  # insertion-ordered, and any job leaves in constant time
        self._again: deque[tuple[Job, ...]] = deque()  # groups that each run as a batch of their own, first of all
        self._seconds_per_image = 0.0

    def __len__(self) -> int:
        return len(self._waiting) + sum(map(len, self._again))

    def put(self, job: Job) -> None:
        """Queue a job."""
        self._waiting[job] = None

    def give_back(self, groups: Iterable[tuple[Job, ...]]) -> None:
        """Queue jobs of a failed batch before all others; each group stays apart from the rest."""
        self._again.extend(groups)

    def discard(self, job: Job) -> bool:
        """Drop a job that nobody waits for any more; False if it is not waiting here."""
        return self._waiting.pop(job, self) is None

    def due_in(self, limit: int, now: float) -> float | None:
        """Seconds until a batch of up to `limit` should go; 0 for at once, None while nothing waits."""
        if self._again:
            return 0.0
        if not self._waiting:
            return None
        if len(self._waiting) >= limit:
            return 0.0
        oldest = next(iter(self._waiting))
        return max(0.0, oldest.enqueued_at + self._max_wait_s - now)

    def take(self, limit: int) -> list[Job]:
        """Remove and return a group that was given back, else the oldest jobs; at most `limit`."""
        while self._again:
            if batch := self._take_group(limit):
                return batch
        batch = [job for job, _ in zip(self._waiting, range(limit), strict=False)]
        for job in batch:
            del self._waiting[job]
        return batch

    def take_all(self) -> list[Job]:
        """Remove and return every job."""
        everything = [job for group in self._again for job in group] + list(self._waiting)
        self._again.clear()
        self._waiting.clear()
        return everything

    def _take_group(self, limit: int) -> list[Job]:
        group = [job for job in self._again.popleft() if not job.done.done()]
        if group[limit:]:
            self._again.appendleft(tuple(group[limit:]))
        return group[:limit]

    def ran(self, images: int, seconds: float) -> None:
        """Learn the service rate from a batch that ran."""
        per_image = seconds / images
        known = self._seconds_per_image
        self._seconds_per_image = per_image if not known else known + RATE_SMOOTHING * (per_image - known)

    def seconds_for(self, images: int) -> int:
        """Whole seconds, at least one, until `images` will have run at the measured rate."""
        return max(1, math.ceil(images * self._seconds_per_image))
