"""The batching policy: oldest job first, by default no timer, no job twice."""

from __future__ import annotations

import asyncio

import pytest

from service.devices.batcher import GATHERED, GATHERING_S, Batcher
from service.jobs import Job, Task


def job(at: float = 0.0) -> Job:
    """A job queued at `at` seconds."""
    loop = asyncio.new_event_loop()
    try:
        return Job(0, Task("classify"), at, loop.create_future())
    finally:
        loop.close()


def test_takes_the_oldest_up_to_the_limit() -> None:
    """A batch takes the oldest jobs up to the limit, and the others stay for the next batch."""
    batcher, jobs = Batcher(), [job() for _ in range(5)]
    for one in jobs:
        batcher.put(one)

    assert jobs[:3] == batcher.take(3, 0.0)
    assert jobs[3:] == batcher.take(3, 0.0)
    assert [] == batcher.take(3, 0.0)


def test_goes_at_once_by_default() -> None:
    """By default a single job is due at once."""
    batcher = Batcher()
    assert batcher.due_in(8, now=0) is None
    batcher.put(job(at=5))

    assert 0 == batcher.due_in(8, now=5)


def test_a_wait_counts_from_the_oldest_job() -> None:
    """With a longest wait, a batch is due when its oldest job has waited that long."""
    batcher = Batcher(max_wait_s=0.01)
    batcher.put(job(at=1.0))
    batcher.put(job(at=1.008))

    assert 0.004 == pytest.approx(batcher.due_in(8, now=1.006))
    assert 0 == batcher.due_in(8, now=1.5)


def test_while_more_are_about_to_come_some_gather() -> None:
    """While more jobs follow, a batch waits for enough of them, at most GATHERING_S."""
    batcher = Batcher()
    batcher.put(job(at=1.0), more=True)

    assert GATHERING_S == pytest.approx(batcher.due_in(8, now=1.0))
    assert 0 == batcher.due_in(8, now=1.0 + GATHERING_S)
    assert 0 == batcher.due_in(1, now=1.0)
    for _ in range(GATHERED - 1):
        batcher.put(job(at=1.0), more=True)
    assert 0 == batcher.due_in(32, now=1.0)
    batcher.take(GATHERED, now=1.0)
    batcher.put(job(at=1.0))
    assert 0 == batcher.due_in(32, now=1.0)


def test_a_waiting_device_should_look_when_that_changes_something() -> None:
    """`put` wakes a device for the first job, the job that fills a batch, and the last expected job."""
    batcher = Batcher()

    assert [True, False, False, True] == [batcher.put(job(), more=True, limit=4) for _ in range(4)]
    assert not batcher.put(job(), more=True, limit=32)
    assert batcher.put(job(), more=False, limit=32)


def test_a_batch_that_is_not_full_can_be_held_back() -> None:
    """A batch that is not full waits at least `hold_s`, a batch of jobs that failed too; a full one does not."""
    batcher, one = Batcher(max_wait_s=0.01), job(at=1.0)
    assert batcher.due_in(2, 1.0, hold_s=0.5) is None
    batcher.put(one)

    assert 0.004 == pytest.approx(batcher.due_in(2, 1.006, hold_s=0.001))
    assert 0.5 == batcher.due_in(2, 1.02, hold_s=0.5)
    assert 0 == batcher.due_in(1, 1.02, hold_s=0.5)
    batcher.give_back([tuple(batcher.take(2, 1.02))])
    assert 0 == batcher.due_in(2, 1.0)
    assert 0.5 == batcher.due_in(2, 1.02, hold_s=0.5)


def test_a_full_batch_does_not_wait() -> None:
    """VIM_MAX_WAIT_MS delays only batches that are not full."""
    batcher = Batcher(max_wait_s=10)
    for _ in range(4):
        batcher.put(job(at=1.0))

    assert 0 == batcher.due_in(4, now=1.0)


def test_a_discarded_job_never_runs() -> None:
    """A discarded job does not run, and to discard it again or after it was taken changes nothing."""
    batcher, gone, stays = Batcher(), job(), job()
    batcher.put(gone)
    batcher.put(stays)

    assert batcher.discard(gone)
    assert not batcher.discard(gone)
    assert [stays] == batcher.take(8, 0.0)
    assert not batcher.discard(stays)


def test_the_cost_of_an_image_is_measured() -> None:
    """The time per image is 0 at first, then a running mean of the batches."""
    batcher = Batcher()
    assert 0 == batcher.seconds_per_image
    batcher.ran(1, seconds=0.5)
    assert 0.5 == batcher.seconds_per_image
    for _ in range(50):
        batcher.ran(8, seconds=0.8)

    assert 0.1 == pytest.approx(batcher.seconds_per_image, abs=1e-4)
