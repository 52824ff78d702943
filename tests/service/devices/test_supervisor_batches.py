"""Batches are retried when they or their device process fail, with scripted devices."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from service.devices.messages import BatchDone
from service.devices.process import BatchError
from service.errors import InferenceFailed, NonFiniteOutput
from service.jobs import Job, RequestClass
from tests.service.devices.scripted_devices import Script, dies, dies_of, outcomes, rows, submit, supervised

pytestmark = pytest.mark.anyio


async def test_one_poison_image_fails_alone_and_is_quarantined(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image that ends the process fails and is quarantined, and all others are answered."""
    script = Script(dies_of(3))
    async with supervised(monkeypatch, script) as supervisor:
        futures = submit(supervisor, 8)
        answers = await outcomes(futures)
        bad = [answer for answer in answers if isinstance(answer, InferenceFailed)]

        assert 1 == len(bad)
        assert 7 == sum(hasattr(answer, "values") for answer in answers)
        context = supervisor.context
        assert isinstance(context.quarantine.check(context.canary.pixels[3], 0.0), InferenceFailed)


async def test_out_of_memory_lowers_the_largest_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that does not fit is split, and later batches are no larger than what fitted."""

    def hungry(batch: Sequence[Job]) -> BatchDone:
        if len(batch) > 2:
            raise BatchError("out_of_memory", "no room")
        return rows(batch)

    script = Script(hungry)
    async with supervised(monkeypatch, script) as supervisor:
        first = await outcomes(submit(supervisor, 8))
        script.batches.clear()
        second = await outcomes(submit(supervisor, 8))

        assert all(hasattr(answer, "values") for answer in first + second)
        assert max(script.batches) <= 2
        assert 0 == supervisor.restarts
        page = supervisor.metrics.render()[0].decode()
        assert 'vim_batch_limit{device="cpu",model="m"} 2.0' in page
        assert 'vim_batch_retries_total{model="m",reason="out_of_memory"}' in page


async def test_a_row_that_is_not_finite_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image without a finite result fails alone, and nothing runs again."""

    def one_nan(batch: Sequence[Job]) -> BatchDone:
        done = rows(batch)
        return BatchDone(0, (None, *done.rows[1:]), 0.001, widened=2)

    script = Script(one_nan)
    async with supervised(monkeypatch, script) as supervisor:
        answers = await outcomes(submit(supervisor, 4))

        assert isinstance(answers[0], NonFiniteOutput)
        assert 3 == sum(hasattr(answer, "values") for answer in answers)
        assert 'vim_widened_images_total{model="m"} 2.0' in supervisor.metrics.render()[0].decode()
        assert [4] == script.batches


async def test_an_interactive_image_is_in_the_batch_after_the_one_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interactive image runs in the next batch, without bulk; bulk follows after it."""
    batches: list[list[RequestClass]] = []
    late: list[asyncio.Future[Any]] = []

    def recorded(batch: Sequence[Job]) -> BatchDone:
        batches.append([job.request_class for job in batch])
        if len(batches) == 1:
            late.extend(submit(supervisor, 1))
        return rows(batch)

    async with supervised(monkeypatch, Script(recorded)) as supervisor:
        await outcomes(submit(supervisor, 15, "bulk"))
        await outcomes(late)

    assert [["bulk"] * 8, ["interactive"], ["bulk"] * 7] == batches


async def test_two_batches_are_with_a_device_that_takes_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device with a depth of two has at most two batches at a time."""
    script = Script(rows)
    script.depth, script.largest = 2, 4
    async with supervised(monkeypatch, script) as supervisor:
        answers = await outcomes(submit(supervisor, 16))

        assert list(range(1, 17)) == sorted(answer.values[0] for answer in answers)
        assert 2 == max(len(company) for company in script.company)
        assert [4, 4, 4, 4] == script.batches


async def test_both_batches_survive_the_death_of_their_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a device process with two batches ends, the jobs of both are answered."""
    script = Script(dies, rows)
    script.depth, script.largest = 2, 4
    async with supervised(monkeypatch, script) as supervisor:
        answers = await outcomes(submit(supervisor, 16))

        assert list(range(1, 17)) == sorted(answer.values[0] for answer in answers)
        assert 1 == supervisor.restarts
        assert [] == supervisor.running


async def test_among_two_batches_in_flight_only_the_poison_image_is_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image that has failed runs alone afterwards, so only the image that ends the process is blamed."""
    script = Script(dies_of(3))
    script.depth, script.largest = 2, 1  # every batch has one image, so each image could be the cause
    async with supervised(monkeypatch, script, max_restarts=20) as supervisor:
        answers = await outcomes(submit(supervisor, 8))
        bad = [index for index, answer in enumerate(answers) if isinstance(answer, InferenceFailed)]

        assert [3] == bad
        with_it = [company for company in script.company if 3 in company]
        assert 2 in map(len, with_it[:-2])  # another batch was in flight at the same time
        assert [{3}, {3}] == with_it[-2:]


async def test_an_error_of_one_batch_leaves_the_other_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """When one of two batches fails, the other is answered from its first run."""

    def fails_on_zero(batch: Sequence[Job]) -> BatchDone:
        if batch[0].slot == 0 and len(batch) > 1:
            raise BatchError("error", "a kernel was refused")
        return rows(batch)

    script = Script(fails_on_zero)
    script.depth, script.largest = 2, 2
    async with supervised(monkeypatch, script) as supervisor:
        answers = await outcomes(submit(supervisor, 4))

        assert all(hasattr(answer, "values") for answer in answers)
        assert [2, 2, 1, 1] == script.batches


async def test_memory_that_another_batch_had_blames_no_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """A single image that did not fit beside another batch runs again alone, and the limit stays."""

    def crowded(batch: Sequence[Job]) -> BatchDone:
        if len(script.out) > 1:
            raise BatchError("out_of_memory", "no room")
        return rows(batch)

    script = Script(crowded)
    script.depth, script.largest = 2, 1
    async with supervised(monkeypatch, script) as supervisor:
        answers = await outcomes(submit(supervisor, 4))

        assert all(hasattr(answer, "values") for answer in answers)
        assert 1 == supervisor.status.limit


async def test_a_suspect_that_waits_for_its_turn_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the supervisor is cancelled, the job of a waiting suspect is queued again and can be answered at the end."""

    def fails_on_zero(batch: Sequence[Job]) -> BatchDone:
        if batch[0].slot == 0:
            raise BatchError("error", "a kernel was refused")
        return rows(batch)

    script = Script(fails_on_zero)
    script.depth, script.largest = 2, 2
    async with supervised(monkeypatch, script) as supervisor:
        futures = submit(supervisor, 6)
        while len(script.batches) < 3:
            await asyncio.sleep(0)
        supervisor.task.cancel()
        await asyncio.gather(supervisor.task, return_exceptions=True)
        waiting = supervisor.context.queue.take_all()

        assert {id(future) for future in futures if not future.done()} == {id(job.done) for job in waiting}
