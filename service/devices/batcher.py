"""What runs next: plain Python, no clock of its own, no processes, no torch.

The device pulls: whenever it is free it takes what waits, up to its largest batch. While it is busy jobs gather by
themselves, so there is no timer by default; with `max_wait_s` a batch that is not full is held back until its oldest
job has waited that long, counted from when it was queued (so time spent behind a busy device counts). And while `more`
are about to come a device is handed `GATHERED` jobs together, or what has come in `GATHERING_S`: to hand a job over
alone costs as much as all else that is done for a small image.

Two classes, each oldest first, by three rules:

1. Bulk fills what interactive leaves: a batch takes interactive jobs first, then bulk.
2. Bulk never delays interactive by more than one batch: before and beside a waiting interactive job no more bulk jobs
   are taken than one full batch holds, those of the last batch taken before it came counted too.
3. Bulk is not starved: once its oldest job has waited `BULK_PATIENCE_S`, one place in `BULK_SHARE` of every batch, at
   least one, is kept for bulk, as far as rule 2 allows.

Jobs of a failed batch come back in groups that each run as a batch of their own, before the others of their class. A
group is interactive if one of its jobs is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice

from service.jobs import Job

RATE_SMOOTHING = 0.2  # weight of the newest batch in the running rate
BULK_PATIENCE_S = 2.0
BULK_SHARE = 8
GATHERED, GATHERING_S = 8, 0.003

Group = tuple[Job, ...]


class Batcher:
    """Waiting jobs by class, oldest first."""

    def __init__(self, max_wait_s: float = 0.0, more: Callable[[], bool] = lambda: False) -> None:
        self._max_wait_s = max_wait_s
        self._more = more  # are jobs about to come?
        # Insertion-ordered, and any job leaves in constant time. The number is `_before_last` at the job's arrival.
        self._interactive: dict[Job, int] = {}
        self._bulk: dict[Job, int] = {}
        self._again: deque[Group] = deque()  # interactive groups
        self._bulk_again: deque[Group] = deque()
        self._bulk_taken = 0  # bulk jobs handed out so far
        self._before_last = 0  # the same, before the last batch was taken: that one may still be running
        self._seconds_per_image = 0.0

    def __len__(self) -> int:
        groups = sum(len(group) for group in (*self._again, *self._bulk_again))
        return len(self._interactive) + len(self._bulk) + groups

    def put(self, job: Job) -> None:
        """Queue a job."""
        self._queue_of(job)[job] = self._before_last

    def give_back(self, groups: Iterable[Group]) -> None:
        """Queue jobs of a failed batch before all others of their class; each group stays apart from the rest."""
        for group in groups:
            (self._bulk_again if _is_bulk(group) else self._again).append(group)

    def hurry(self, job: Job) -> None:
        """An interactive request waits for this bulk job now: it goes where an interactive job that came now would."""
        waited = self._bulk.pop(job, None) is not None
        job.request_class = "interactive"
        if waited:
            self.put(job)
        for group in [group for group in self._bulk_again if job in group]:
            self._bulk_again.remove(group)
            self._again.append(group)

    def discard(self, job: Job) -> bool:
        """Drop a job that nobody waits for any more; False if it is not waiting here."""
        return self._queue_of(job).pop(job, None) is not None

    def due_in(self, limit: int, now: float) -> float | None:
        """Seconds until a batch of up to `limit` should go; 0 for at once, None while nothing waits."""
        if self._again or self._bulk_again:
            return 0.0
        oldest = [next(iter(queue)).enqueued_at for queue in (self._interactive, self._bulk) if queue]
        if not oldest:
            return None
        if len(self) >= limit:
            return 0.0
        wait_s = max(self._max_wait_s, GATHERING_S) if self._gathering(limit) else self._max_wait_s
        return max(0.0, min(oldest) + wait_s - now)

    def worth_telling(self, limit: int) -> bool:
        """Should whoever waits for a batch of up to `limit` look again, now that a job was queued?"""
        return len(self) == 1 or not self._gathering(limit)

    def _gathering(self, limit: int) -> bool:
        return len(self) < min(GATHERED, limit) and self._more()

    def take(self, limit: int, now: float) -> list[Job]:
        """Remove and return the next batch, at most `limit` jobs; empty only if nobody waits for any job any more."""
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
        """Learn the service rate from a batch that ran."""
        per_image = seconds / images
        known = self._seconds_per_image
        self._seconds_per_image = per_image if not known else known + RATE_SMOOTHING * (per_image - known)

    @property
    def seconds_per_image(self) -> float:
        """What an image costs a device at the measured rate; 0 before anything ran."""
        return self._seconds_per_image

    def _queue_of(self, job: Job) -> dict[Job, int]:
        return self._bulk if job.request_class == "bulk" else self._interactive

    def _take_waiting(self, limit: int, now: float) -> list[Job]:
        room = 0 if self._bulk_again else min(len(self._bulk), self._room_for_bulk(limit))
        kept = min(room, max(1, limit // BULK_SHARE)) if self._impatient(self._bulk, now) else 0
        batch = _pop(self._interactive, limit - kept)
        return batch + _pop(self._bulk, min(room, limit - len(batch)))

    def _room_for_bulk(self, limit: int) -> int:
        """Rule 2: how many bulk jobs may go before or beside the interactive job that has seen most of them pass."""
        if not self._interactive:
            return limit
        seen = self._bulk_taken - next(iter(self._interactive.values()))
        return max(0, limit - seen)

    def _take_group(self, limit: int, now: float) -> list[Job]:
        while self._again:
            if batch := _pop_group(self._again, limit):
                return batch
        while self._bulk_again and self._may_run_bulk_group(limit, now):
            if batch := _pop_group(self._bulk_again, limit):
                return batch
        return []

    def _may_run_bulk_group(self, limit: int, now: float) -> bool:
        """Like other bulk, a group gives way to interactive jobs until it is impatient and rule 2 has room for it."""
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
    """The first group without the jobs that nobody waits for; what exceeds the limit stays a group."""
    group = [job for job in groups.popleft() if not job.done.done()]
    if group[limit:]:
        groups.appendleft(tuple(group[limit:]))
    return group[:limit]
