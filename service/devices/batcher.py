"""The queue of jobs; it decides which jobs form the next batch. Plain Python: no clock, no processes, no torch.

A device that is free takes the waiting jobs, up to its largest batch. While it is busy, jobs accumulate. So by default
no timer is needed. With `max_wait_s` a batch that is not full is held back until its oldest job has waited that long.
While small images wait to be decoded (`more`), a batch is held back until it has `GATHERED` jobs, for at most
`GATHERING_S`: sending one job to a device costs as much as all other work for a small image.

Two request classes, each oldest first, by three rules:

1. Interactive goes first: a batch takes interactive jobs, then bulk jobs if there is room.
2. Bulk never delays interactive by more than one batch: while an interactive job waits, and in its own batch, no more
   bulk jobs run than one full batch holds. The bulk jobs of the batch that ran when the job arrived are counted too.
3. Bulk is not starved: once its oldest job has waited `BULK_PATIENCE_S`, one place in `BULK_SHARE` of every batch, at
   least one, is reserved for bulk, if rule 2 allows it.

Jobs of a failed batch return in groups. Each group runs as a batch of its own, before the other jobs of its class. A
group is interactive if one of its jobs is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import islice

from service.jobs import Job

RATE_SMOOTHING = 0.2  # weight of the newest batch in the running rate
BULK_PATIENCE_S = 2.0  # see rule 3
BULK_SHARE = 8  # see rule 3
GATHERED, GATHERING_S = 8, 0.003

Group = tuple[Job, ...]


class Batcher:
    """Waiting jobs by class, oldest first."""

    def __init__(self, max_wait_s: float = 0.0) -> None:
        self.seconds_per_image = 0.0  # device time for one image, measured; 0 before the first batch
        self._max_wait_s = max_wait_s
        self._more = False  # more jobs will follow soon
        # Dicts keep the order and remove any job in constant time. The value is `_before_last` when the job arrived.
        self._interactive: dict[Job, int] = {}
        self._bulk: dict[Job, int] = {}
        self._again: deque[Group] = deque()  # interactive groups
        self._bulk_again: deque[Group] = deque()
        self._bulk_taken = 0  # bulk jobs taken so far
        self._before_last = 0  # `_bulk_taken` before the last batch was taken, which may still run

    def __len__(self) -> int:
        groups = sum(len(group) for group in (*self._again, *self._bulk_again))
        return len(self._interactive) + len(self._bulk) + groups

    def put(self, job: Job, *, more: bool = False, limit: int = GATHERED) -> bool:
        """Queue a job. `more`: others will follow soon. Returns whether to wake a device that waits for jobs."""
        self._more = more
        self._queue_of(job)[job] = self._before_last
        return len(self) == 1 or not self._gathering(limit)

    def give_back(self, groups: Iterable[Group]) -> None:
        """Queue jobs of a failed batch before all others of their class; each group runs as a batch of its own."""
        for group in groups:
            (self._bulk_again if _is_bulk(group) else self._again).append(group)

    def promote(self, job: Job) -> None:
        """Make a bulk job interactive: it is queued like an interactive job that arrives now."""
        waited = self._bulk.pop(job, None) is not None
        job.request_class = "interactive"
        if waited:
            self.put(job)
        for group in [group for group in self._bulk_again if job in group]:
            self._bulk_again.remove(group)
            self._again.append(group)

    def discard(self, job: Job) -> bool:
        """Remove a job that no request waits for; False if it is not in the queue."""
        return self._queue_of(job).pop(job, None) is not None

    def due_in(self, limit: int, now: float, hold_s: float = 0.0) -> float | None:
        """Seconds until a batch of up to `limit` jobs is due; 0 for now, None while no job waits.

        A batch that is not full waits at least `hold_s`.
        """
        oldest = [next(iter(queue)).enqueued_at for queue in (self._interactive, self._bulk) if queue]
        again = self._again or self._bulk_again
        if not oldest and not again:
            return None
        if len(self) >= limit:
            return 0.0
        return hold_s if again else max(0.0, min(oldest) + self._wait_s(limit) - now, hold_s)

    def _wait_s(self, limit: int) -> float:
        return max(self._max_wait_s, GATHERING_S) if self._gathering(limit) else self._max_wait_s

    def _gathering(self, limit: int) -> bool:
        return len(self) < min(GATHERED, limit) and self._more

    def take(self, limit: int, now: float) -> list[Job]:
        """Remove and return the next batch, at most `limit` jobs; empty only if no job has a waiting request."""
        batch = self._take_group(limit, now) or self._take_waiting(limit, now)
        self._before_last = self._bulk_taken
        self._bulk_taken += sum(job.request_class == "bulk" for job in batch)
        return batch

    def take_all(self) -> list[Job]:
        """Remove and return every job."""
        groups = [job for group in (*self._again, *self._bulk_again) for job in group]
        everything = [*groups, *self._interactive, *self._bulk]
        for queue in (self._again, self._bulk_again, self._interactive, self._bulk):
            queue.clear()
        return everything

    def ran(self, images: int, seconds: float) -> None:
        """Update the measured rate with a batch that ran."""
        per_image = seconds / images
        known = self.seconds_per_image
        self.seconds_per_image = per_image if not known else known + RATE_SMOOTHING * (per_image - known)

    def _queue_of(self, job: Job) -> dict[Job, int]:
        return self._bulk if job.request_class == "bulk" else self._interactive

    def _take_waiting(self, limit: int, now: float) -> list[Job]:
        room = 0 if self._bulk_again else min(len(self._bulk), self._room_for_bulk(limit))
        kept = min(room, max(1, limit // BULK_SHARE)) if self._impatient(self._bulk, now) else 0
        batch = _pop(self._interactive, limit - kept)
        return batch + _pop(self._bulk, min(room, limit - len(batch)))

    def _room_for_bulk(self, limit: int) -> int:
        """Rule 2: how many bulk jobs may still run before or with the oldest interactive job."""
        if not self._interactive:
            return limit
        passed = self._bulk_taken - next(iter(self._interactive.values()))
        return max(0, limit - passed)

    def _take_group(self, limit: int, now: float) -> list[Job]:
        while self._again:
            if batch := _pop_group(self._again, limit):
                return batch
        while self._bulk_again and self._may_run_bulk_group(limit, now):
            if batch := _pop_group(self._bulk_again, limit):
                return batch
        return []

    def _may_run_bulk_group(self, limit: int, now: float) -> bool:
        """A bulk group goes after interactive jobs, unless it has waited `BULK_PATIENCE_S` and rule 2 allows it."""
        group = self._bulk_again[0]
        fits = min(limit, len(group)) <= self._room_for_bulk(limit)
        return not self._interactive or (fits and self._impatient(group, now))

    @staticmethod
    def _impatient(jobs: Iterable[Job], now: float) -> bool:
        oldest = next(iter(jobs), None)
        return oldest is not None and now - oldest.enqueued_at >= BULK_PATIENCE_S


def _is_bulk(group: Group) -> bool:
    return all(job.request_class == "bulk" for job in group)


def _pop(queue: dict[Job, int], count: int) -> list[Job]:
    batch = list(islice(queue, count))
    for job in batch:
        del queue[job]
    return batch


def _pop_group(groups: deque[Group], limit: int) -> list[Job]:
    """Remove the first group and drop its settled jobs; the jobs beyond the limit stay a group."""
    group = [job for job in groups.popleft() if not job.done.done()]
    if group[limit:]:
        groups.appendleft(tuple(group[limit:]))
    return group[:limit]
