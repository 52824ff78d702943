"""Decides what happens to a batch that failed. Plain Python. Inference has no side effects, so it can be repeated.

A batch of several images runs again in halves, until the image that causes the failure fails alone and the others are
answered. An image is blamed for the end of a device process only when that happened twice while it was alone in flight,
because a process can also be killed for other reasons.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from service.errors import InferenceFailed, ServiceError
from service.jobs import Job

Failure = Literal["error", "out_of_memory", "device_lost"]

FATAL_DEATHS = 2  # an image that has ended this many device processes while alone is quarantined
QUARANTINE_S = 600.0

_EXPLAINED: dict[Failure, str] = {
    "error": "the forward pass failed on this image; the log has the details",
    "out_of_memory": "this image alone does not fit into the device's memory",
    "device_lost": f"the device process died {FATAL_DEATHS} times with this image alone in flight; it is quarantined",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """Groups of jobs to run again, each as a batch of its own, and the job that caused the failure, if known."""

    again: tuple[tuple[Job, ...], ...] = ()
    culprit: Job | None = None
    error: ServiceError | None = None


def judge(batch: Sequence[Job], failure: Failure, *, company: bool = False) -> Verdict:
    """Decide about a batch that failed. Jobs without a waiting request are left out.

    `company`: the device had another batch at the same time, so the failure may not come from this one.
    """
    waiting = tuple(job for job in batch if not job.done.done())
    for job in waiting:
        job.suspect = True
    if not waiting:
        return Verdict()
    if len(batch) > 1:
        return Verdict(again=halves(waiting))
    (job,) = waiting
    if failure == "out_of_memory" and company:  # the other batch used the memory; the next run is alone
        return Verdict(again=((job,),))
    if failure == "device_lost":
        job.deaths_alone += not company
        if job.deaths_alone < FATAL_DEATHS:
            return Verdict(again=((job,),))
    return Verdict(culprit=job, error=InferenceFailed(_EXPLAINED[failure]))


def halves(jobs: tuple[Job, ...]) -> tuple[tuple[Job, ...], ...]:
    """Two groups, or one where there is only one job."""
    middle = (len(jobs) + 1) // 2
    return tuple(part for part in (jobs[:middle], jobs[middle:]) if part)


class Quarantine:
    """Hashes of pixels that have ended a device process twice; they are refused for some time."""

    def __init__(self, seconds: float = QUARANTINE_S) -> None:
        self.until: dict[bytes, float] = {}  # hash -> when its quarantine ends; empty most of the time
        self._seconds = seconds

    def add(self, pixels: np.ndarray, now: float) -> None:
        """Refuse these pixels from now on, until the time is over."""
        self.until = {digest: until for digest, until in self.until.items() if until > now}
        self.until[_digest(pixels)] = now + self._seconds

    def check(self, pixels: np.ndarray, now: float) -> InferenceFailed | None:
        """The error for quarantined pixels. Computes no hash while the quarantine is empty."""
        if self.until and self.until.get(_digest(pixels), now) > now:
            return InferenceFailed("this image has killed the device process before; it is quarantined for a while")
        return None


def _digest(pixels: np.ndarray) -> bytes:
    return hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()
