"""When a busy device gets its next batch: when the batch is full, or when the running one is about to end."""

from __future__ import annotations

import asyncio

import pytest

from service.devices.dispatcher import Pipeline
from service.jobs import Job, Task

SECONDS = {1: 0.010, 4: 0.020, 8: 0.030}


def jobs(count: int, *, suspect: bool = False) -> tuple[Job, ...]:
    """The jobs of one batch."""
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
    """Without a batch on the device the next one is neither blocked nor held back."""
    pipeline = Pipeline(depth)

    assert not pipeline.blocked
    assert 0 == pipeline.hold_s(5.0)


def test_with_one_batch_at_a_time_the_next_waits_for_its_end() -> None:
    """With a depth of one even a full batch waits until the running one has ended."""
    pipeline = Pipeline(1, 0.0, SECONDS)
    batch = pipeline.begin(jobs(4), now=1.0)

    assert pipeline.blocked
    pipeline.end(batch, now=1.6)
    assert not pipeline.blocked
    assert 0 == pipeline.hold_s(1.6)


def test_a_full_batch_goes_while_one_runs_and_a_third_waits() -> None:
    """With a depth of two a second batch may be sent while one runs, and a third may not."""
    pipeline = Pipeline(2, 0.0, SECONDS)
    pipeline.begin(jobs(4), now=1.0)

    assert not pipeline.blocked
    pipeline.begin(jobs(8), now=1.001)
    assert pipeline.blocked


def test_a_part_of_a_batch_goes_when_the_running_one_is_about_to_end() -> None:
    """A partial batch is sent `lead_s` before the expected end of the running one, by the next larger size."""
    pipeline = Pipeline(2, 0.002, SECONDS)
    pipeline.begin(jobs(3), now=1.0)

    assert 0.013 == pytest.approx(pipeline.hold_s(1.005))
    assert 0 == pipeline.hold_s(1.018)


def test_a_batch_that_waited_for_another_is_timed_from_that_ones_end() -> None:
    """The time of a batch that was sent early begins when the batch before it ends."""
    pipeline = Pipeline(2, 0.0, SECONDS)
    first, second = pipeline.begin(jobs(8), now=1.0), pipeline.begin(jobs(8), now=1.001)
    pipeline.end(first, now=1.030)

    assert 1.030 == second.began_at
    assert 0.025 == pytest.approx(pipeline.hold_s(1.035))


def test_what_batches_really_take_is_learned() -> None:
    """The expected duration of a batch size follows the measured ones slowly."""
    pipeline = Pipeline(2, 0.0, SECONDS)
    for _ in range(40):
        pipeline.ran(3, 0.040)
    pipeline.begin(jobs(4), now=1.0)

    assert 0.040 == pytest.approx(pipeline.hold_s(1.0), rel=0.01)


def test_a_suspect_runs_alone() -> None:
    """While a batch with a suspect is with the device, no other batch is sent."""
    pipeline = Pipeline(2, 0.0, SECONDS)
    batch = pipeline.begin(jobs(1, suspect=True), now=1.0)

    assert batch.alone
    assert pipeline.blocked


def test_batches_that_shared_the_device_are_marked() -> None:
    """Batches that shared the device are marked, because the end of its process then blames neither."""
    pipeline = Pipeline(2, 0.0, SECONDS)
    first = pipeline.begin(jobs(1), now=1.0)
    assert not first.shared
    second = pipeline.begin(jobs(1), now=1.0)

    assert (True, True) == (first.shared, second.shared)
    assert 2 == len(pipeline.batches)
    pipeline.end(first, now=1.1)
    pipeline.end(second, now=1.2)
    assert not pipeline.begin(jobs(1), now=1.3).shared
