"""When a device at work gets its next batch: when that is full, or when the running one is about to end."""

from __future__ import annotations

import asyncio

import pytest

from service.jobs import Job, Task

SECONDS = {1: 0.010, 4: 0.020, 8: 0.030}


def jobs(count: int, *, suspect: bool = False) -> tuple[Job, ...]:
    """Jobs of one batch."""
    loop = asyncio.new_event_loop()
    try:
        made = [Job(slot, Task("embed"), 0.0, loop.create_future()) for slot in range(count)]
    finally:
        loop.close()
    for job in made:
        job.suspect = suspect
    return tuple(made)


@pytest.mark.parametrize("depth", [1, 2])
def test_an_idle_device_gets_what_there_is(depth: int) -> None:
    """At once, full or not."""
    assert 0 == Handover(depth).due_in(5.0, full=False)


def test_with_one_batch_at_a_time_the_next_waits_for_its_end() -> None:
    """However full it is."""
    handover = Handover(1, 0.0, SECONDS)
    flight = handover.begin(jobs(4), now=1.0)

    assert handover.due_in(1.5, full=True) is None
    handover.end(flight, now=1.6)
    assert 0 == handover.due_in(1.6, full=False)


def test_a_full_batch_goes_while_one_runs_and_a_third_waits() -> None:
    """Two lanes."""
    handover = Handover(2, 0.0, SECONDS)
    handover.begin(jobs(4), now=1.0)

    assert 0 == handover.due_in(1.001, full=True)
    handover.begin(jobs(8), now=1.001)
    assert handover.due_in(1.002, full=True) is None


def test_a_part_of_a_batch_goes_when_the_running_one_is_about_to_end() -> None:
    """A batch of three runs as one of four: 20 ms; 2 ms before that."""
    handover = Handover(2, 0.002, SECONDS)
    handover.begin(jobs(3), now=1.0)

    assert 0.013 == pytest.approx(handover.due_in(1.005, full=False))
    assert 0 == handover.due_in(1.018, full=False)


def test_a_batch_that_waited_for_another_is_timed_from_that_ones_end() -> None:
    """Handed over early, it did not run early; that is also when its images stopped waiting."""
    handover = Handover(2, 0.0, SECONDS)
    first, second = handover.begin(jobs(8), now=1.0), handover.begin(jobs(8), now=1.001)
    handover.end(first, now=1.030)

    assert 1.030 == second.began_at
    assert 0.025 == pytest.approx(handover.due_in(1.035, full=False))


def test_what_batches_really_take_is_learned() -> None:
    """By size, slowly: one that was held up says little."""
    handover = Handover(2, 0.0, SECONDS)
    for _ in range(40):
        handover.ran(3, 0.040)
    handover.begin(jobs(4), now=1.0)

    assert 0.040 == pytest.approx(handover.due_in(1.0, full=False), rel=0.01)


def test_a_suspect_flies_alone() -> None:
    """Nothing is handed over beside it."""
    handover = Handover(2, 0.0, SECONDS)
    flight = handover.begin(jobs(1, suspect=True), now=1.0)

    assert flight.alone
    assert handover.due_in(2.0, full=True) is None


def test_batches_that_met_at_the_device_know_it() -> None:
    """A death then says nothing about either."""
    handover = Handover(2, 0.0, SECONDS)
    first = handover.begin(jobs(1), now=1.0)
    assert not first.shared
    second = handover.begin(jobs(1), now=1.0)

    assert (True, True) == (first.shared, second.shared)
    assert 2 == len(handover.jobs)
    handover.end(first, now=1.1)
    handover.end(second, now=1.2)
    assert not handover.begin(jobs(1), now=1.3).shared
