"""A failed batch runs again in halves until the bad image is alone; no good image fails."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from service.devices.batcher import Batcher
from service.devices.retry import Failure, Quarantine, judge
from service.errors import InferenceFailed
from service.jobs import Job, Result, Task


def jobs(count: int) -> tuple[Job, ...]:
    """Jobs whose clients wait; each has its own slot."""
    loop = asyncio.new_event_loop()
    try:
        return tuple(Job(slot, Task("classify"), 0.0, loop.create_future()) for slot in range(count))
    finally:
        loop.close()


def run_until_settled(batcher: Batcher, poison: set[int], failure: Failure) -> tuple[set[int], set[int], int]:
    """Run batches; one with a poisoned slot fails. Returns failed slots, slots that ran, number of batches."""
    failed: set[int] = set()
    ran: set[int] = set()
    batches = 0
    while batch := batcher.take(32, 0.0):
        batches += 1
        assert batches < 1000
        if not poison & {job.slot for job in batch}:
            ran |= {job.slot for job in batch}
            continue
        verdict = judge(batch, failure)
        batcher.give_back(verdict.again)
        if verdict.culprit is not None:
            failed.add(verdict.culprit.slot)
    return failed, ran, batches


@pytest.mark.parametrize("failure", ["error", "out_of_memory", "device_lost"])
@pytest.mark.parametrize("poison", [{0}, {31}, {5, 17}, set(range(32))])
def test_only_the_culprits_fail(failure: Failure, poison: set[int]) -> None:
    """Only the images that cause failures fail, for every kind of failure; all others are answered."""
    batcher = Batcher()
    for job in jobs(32):
        batcher.put(job)

    failed, ran, batches = run_until_settled(batcher, poison, failure)
    assert poison == failed
    assert set(range(32)) - poison == ran
    assert batches <= 4 * 32


def test_one_culprit_costs_two_batches_for_each_halving() -> None:
    """To find the one bad image takes two batches for each halving."""
    batcher = Batcher()
    for job in jobs(32):
        batcher.put(job)

    *_, batches = run_until_settled(batcher, {11}, "error")
    assert batches == 1 + 2 * 5


def test_a_process_may_die_once_with_an_image_alone() -> None:
    """An image that was alone when the process ended runs again once; the second time it fails."""
    (job,) = jobs(1)

    assert judge([job], "device_lost").again == ((job,),)
    verdict = judge([job], "device_lost")
    assert verdict.culprit is job
    assert isinstance(verdict.error, InferenceFailed)


def test_dying_in_company_is_no_mark_on_anyone() -> None:
    """If a process ends with two images in the batch, neither is quarantined, even if one is cancelled."""
    first, second = jobs(2)
    second.done.cancel()

    assert judge([first, second], "device_lost").again == ((first,),)
    assert 0 == first.deaths_alone


def test_jobs_that_nobody_waits_for_are_not_run_again() -> None:
    """Settled and cancelled jobs do not run again, because their slots may have other images by then."""
    first, second = jobs(2)
    first.done.set_result(Result(np.zeros(1, np.float32), 0, 0, 1))
    second.done.cancel()

    assert judge([first, second], "error").again == ()


def test_groups_given_back_run_first_and_apart() -> None:
    """Returned groups run before new jobs, and each group is a batch of its own."""
    batcher, suspects, fresh = Batcher(), jobs(3), jobs(4)
    for job in fresh:
        batcher.put(job)
    batcher.give_back([suspects[:2], suspects[2:]])

    assert 7 == len(batcher)
    assert 0 == batcher.due_in(8, now=0)
    assert [list(suspects[:2]), [suspects[2]], list(fresh)] == [batcher.take(8, 0.0) for _ in range(3)]


def test_a_group_larger_than_the_limit_is_cut() -> None:
    """A group that is larger than the batch limit is split, because the limit may have fallen."""
    batcher, group = Batcher(), jobs(5)
    batcher.give_back([group])

    assert [2, 2, 1] == [len(batcher.take(2, 0.0)) for _ in range(3)]


def test_a_group_whose_clients_left_is_skipped() -> None:
    """A group whose jobs are all cancelled is skipped."""
    batcher, gone, fresh = Batcher(), jobs(2), jobs(1)
    batcher.give_back([gone])
    for job in gone:
        job.done.cancel()
    batcher.put(fresh[0])

    assert list(fresh) == batcher.take(8, 0.0)


def test_quarantine_knows_pixels_for_a_while() -> None:
    """Quarantined pixels are refused until the time is over, and other pixels are not."""
    quarantine = Quarantine(seconds=60)
    poison, other = np.full((8, 8, 3), 1, np.uint8), np.full((8, 8, 3), 2, np.uint8)
    assert quarantine.check(poison, now=0) is None
    quarantine.add(poison, now=0)

    refused = quarantine.check(poison.copy(), now=59)
    assert isinstance(refused, InferenceFailed)
    assert "quarantined" in refused.detail
    assert quarantine.check(other, now=59) is None
    assert quarantine.check(poison, now=61) is None
