"""What becomes of a failed batch: halves until the culprit is alone, and no innocent image blamed."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from service.devices.batcher import Batcher
from service.devices.retry import Failure, Quarantine, judge
from service.errors import InferenceFailed
from service.jobs import Job, Result, Task


def jobs(count: int) -> tuple[Job, ...]:
    """Jobs whose clients wait; the slot tells them apart."""
    loop = asyncio.new_event_loop()
    try:
        return tuple(Job(slot, Task("classify"), 0.0, loop.create_future()) for slot in range(count))
    finally:
        loop.close()


def run_until_settled(batcher: Batcher, poison: set[int], failure: Failure) -> tuple[set[int], set[int], int]:
    """Drive batches as a supervisor would; one with a poisoned slot fails. Who failed, who ran, number of batches."""
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
    """Whatever failed and wherever the culprits sit, every other image is answered."""
    batcher = Batcher()
    for job in jobs(32):
        batcher.put(job)

    failed, ran, batches = run_until_settled(batcher, poison, failure)
    assert poison == failed
    assert set(range(32)) - poison == ran
    assert batches <= 4 * 32


def test_one_culprit_costs_two_batches_for_each_halving() -> None:
    """The search is logarithmic."""
    batcher = Batcher()
    for job in jobs(32):
        batcher.put(job)

    *_, batches = run_until_settled(batcher, {11}, "error")
    assert batches == 1 + 2 * 5


def test_a_process_may_die_once_with_an_image_alone() -> None:
    """It can be killed for reasons of its own; the second time the image is to blame."""
    (job,) = jobs(1)

    assert judge([job], "device_lost").again == ((job,),)
    verdict = judge([job], "device_lost")
    assert verdict.culprit is job
    assert isinstance(verdict.error, InferenceFailed)


def test_dying_in_company_is_no_mark_on_anyone() -> None:
    """Also when the companions' clients have left since."""
    first, second = jobs(2)
    second.done.cancel()

    assert judge([first, second], "device_lost").again == ((first,),)
    assert 0 == first.deaths_alone


def test_jobs_that_nobody_waits_for_are_not_run_again() -> None:
    """Their slots may belong to others by then."""
    first, second = jobs(2)
    first.done.set_result(Result(np.zeros(1, np.float32), 0, 0, 1))
    second.done.cancel()

    assert judge([first, second], "error").again == ()


def test_groups_given_back_run_first_and_apart() -> None:
    """Mixing a suspect with fresh jobs would put those at risk."""
    batcher, suspects, fresh = Batcher(), jobs(3), jobs(4)
    for job in fresh:
        batcher.put(job)
    batcher.give_back([suspects[:2], suspects[2:]])

    assert 7 == len(batcher)
    assert 0 == batcher.due_in(8, now=0)
    assert [list(suspects[:2]), [suspects[2]], list(fresh)] == [batcher.take(8, 0.0) for _ in range(3)]


def test_a_group_larger_than_the_limit_is_cut() -> None:
    """The limit may have fallen since it was formed."""
    batcher, group = Batcher(), jobs(5)
    batcher.give_back([group])

    assert [2, 2, 1] == [len(batcher.take(2, 0.0)) for _ in range(3)]


def test_a_group_whose_clients_left_is_skipped() -> None:
    """An empty batch would never run."""
    batcher, gone, fresh = Batcher(), jobs(2), jobs(1)
    batcher.give_back([gone])
    for job in gone:
        job.done.cancel()
    batcher.put(fresh[0])

    assert list(fresh) == batcher.take(8, 0.0)


def test_quarantine_knows_pixels_for_a_while() -> None:
    """The same image sent again is refused without another death; others pass; it ends by itself."""
    quarantine = Quarantine(seconds=60)
    poison, other = np.full((8, 8, 3), 1, np.uint8), np.full((8, 8, 3), 2, np.uint8)
    assert quarantine.check(poison, now=0) is None
    quarantine.add(poison, now=0)

    refused = quarantine.check(poison.copy(), now=59)
    assert isinstance(refused, InferenceFailed)
    assert "quarantined" in refused.detail
    assert quarantine.check(other, now=59) is None
    assert quarantine.check(poison, now=61) is None
