"""Two request classes in the queue: bulk uses free places, delays interactive by one batch, and is not starved."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.devices.batcher import BULK_PATIENCE_S, BULK_SHARE, Batcher
from service.devices.retry import halves
from service.jobs import Job, RequestClass, Task

LATER = 2 * BULK_PATIENCE_S

# Reproducible, and nothing written beside the tests.
CHECKED = settings(max_examples=300, deadline=None, derandomize=True, database=None)


@pytest.fixture(scope="module", autouse=True)
def loop() -> Iterator[None]:
    """Futures need an event loop, though nothing runs in it."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()


def job(request_class: RequestClass = "interactive", at: float = 0.0) -> Job:
    """A job queued at `at` seconds."""
    return Job(0, Task("classify"), at, asyncio.get_event_loop().create_future(), request_class)


def filled(interactive: int, bulk: int) -> tuple[Batcher, list[Job], list[Job]]:
    """A batcher with this many jobs of each class, bulk queued first; and the jobs."""
    batcher = Batcher()
    bulk_jobs, urgent = [job("bulk") for _ in range(bulk)], [job() for _ in range(interactive)]
    for one in [*bulk_jobs, *urgent]:
        batcher.put(one)
    return batcher, urgent, bulk_jobs


def bulk_in(batch: list[Job]) -> int:
    """The number of bulk jobs in a batch."""
    return sum(one.request_class == "bulk" for one in batch)


def test_bulk_fills_what_interactive_leaves() -> None:
    """A batch takes interactive jobs first, then bulk jobs, each class oldest first."""
    batcher, urgent, bulk = filled(interactive=3, bulk=9)

    assert [*urgent, *bulk[:5]] == batcher.take(8, 0.0)
    assert bulk[5:] == batcher.take(8, 0.0)


def test_a_full_batch_of_interactive_has_no_place_for_bulk() -> None:
    """If interactive jobs fill a batch, it has no bulk jobs."""
    batcher, urgent, _ = filled(interactive=10, bulk=4)

    assert urgent[:8] == batcher.take(8, 0.0)


def test_interactive_runs_alone_after_a_full_batch_of_bulk() -> None:
    """An interactive job that came after a full batch of bulk runs without bulk jobs."""
    batcher, _, bulk = filled(interactive=0, bulk=20)
    assert bulk[:8] == batcher.take(8, 0.0)
    late = job()
    batcher.put(late)

    assert [late] == batcher.take(8, 0.0)
    assert bulk[8:16] == batcher.take(8, 0.0)


def test_what_ran_before_the_last_batch_is_no_delay() -> None:
    """Only the bulk jobs of the last batch, which may still run, count as delay for an interactive job."""
    batcher, _, bulk = filled(interactive=0, bulk=20)
    batcher.take(8, 0.0)
    batcher.take(8, 0.0)
    first = job()
    batcher.put(first)
    batcher.take(8, 0.0)
    second = job()
    batcher.put(second)

    assert [second, *bulk[16:]] == batcher.take(8, 0.0)


def test_impatient_bulk_gets_a_share_of_every_batch() -> None:
    """After BULK_PATIENCE_S bulk gets one place in eight of every batch, at least one; not before."""
    batcher, urgent, bulk = filled(interactive=40, bulk=9)

    assert urgent[:16] == batcher.take(16, BULK_PATIENCE_S - 0.1)
    assert [*urgent[16:30], *bulk[: 16 // BULK_SHARE]] == batcher.take(16, BULK_PATIENCE_S)
    assert [*urgent[30:33], bulk[2]] == batcher.take(4, BULK_PATIENCE_S)


def test_impatient_bulk_goes_even_where_a_batch_is_one_image() -> None:
    """With batches of one image, a bulk job that has waited long goes first, then the interactive ones."""
    batcher, urgent, bulk = filled(interactive=2, bulk=3)

    assert [[bulk[0]], [urgent[0]], [urgent[1]], [bulk[1]]] == [batcher.take(1, LATER) for _ in range(4)]


def test_groups_that_were_given_back_keep_their_class() -> None:
    """Interactive groups, also those with bulk jobs, run first, and bulk groups before other bulk jobs."""
    batcher, urgent, bulk = filled(interactive=1, bulk=1)
    mixed, lazy = (job(), job("bulk")), (job("bulk"), job("bulk"))
    batcher.give_back([lazy, mixed])

    assert 0 == batcher.due_in(8, 0.0)
    assert [list(mixed), urgent, list(lazy), bulk] == [batcher.take(8, 0.0) for _ in range(4)]


def test_a_bulk_group_is_not_starved_either() -> None:
    """A bulk group that has waited long runs before interactive jobs."""
    batcher, urgent, _ = filled(interactive=40, bulk=0)
    group = (job("bulk"), job("bulk"))
    batcher.give_back([group])

    assert urgent[:8] == batcher.take(8, 0.0)
    assert list(group) == batcher.take(8, LATER)


def test_an_empty_bulk_group_does_not_hide_the_rest() -> None:
    """A bulk group whose clients have disconnected does not block other bulk jobs."""
    batcher, _, bulk = filled(interactive=0, bulk=1)
    gone = job("bulk")
    gone.done.cancel()
    batcher.give_back([(gone,)])

    assert bulk == batcher.take(8, 0.0)


def test_a_hurried_job_is_interactive_from_then_on() -> None:
    """A promoted job is queued after the interactive jobs before it; to promote a taken job changes nothing."""
    batcher, urgent, bulk = filled(interactive=1, bulk=3)
    batcher.promote(bulk[2])
    late = job()
    batcher.put(late)

    assert [*urgent, bulk[2], late] == batcher.take(3, 0.0)
    batcher.promote(urgent[0])
    batcher.promote(bulk[2])
    assert bulk[:2] == batcher.take(3, 0.0)
    assert 0 == len(batcher)


def test_a_hurried_job_takes_its_group_along() -> None:
    """Promoting one job of a bulk group makes the group interactive, because it runs as one batch."""
    batcher, urgent, _ = filled(interactive=1, bulk=1)
    group = (job("bulk"), job("bulk"))
    batcher.give_back([group])
    batcher.promote(group[1])

    assert [list(group), urgent] == [batcher.take(2, 0.0), batcher.take(1, 0.0)]


ARRIVALS = st.sampled_from(["interactive", "bulk"])
EVENTS = st.lists(st.one_of(ARRIVALS, st.just("take"), st.sampled_from([0.1, 1.0, 3.0])), max_size=120)


@CHECKED
@given(EVENTS, st.integers(1, 12))
def test_the_rules_hold_for_every_order_of_events(events: list[str | float], limit: int) -> None:
    """In every order of events no job is lost, classes stay in order, and bulk delays interactive by one batch."""
    batcher, now = Batcher(), 0.0
    arrived: list[Job] = []
    seen: dict[Job, int] = {}  # batches taken before an interactive job came
    batches: list[list[Job]] = []
    for event in [*events, *["take"] * len(events)]:
        if isinstance(event, float):
            now += event
        elif event == "take":
            before = len(batcher)
            batch = batcher.take(limit, now)
            batches.append(batch)
            assert (len(batch) > 0, len(batcher)) == (before > 0, before - len(batch))
            check_batch(batch, [one for one in arrived if not taken(one, batches)], limit, now)
        else:
            arrived.append(job("bulk" if event == "bulk" else "interactive", now))
            seen[arrived[-1]] = len(batches)
            batcher.put(arrived[-1])

    for request_class in ("interactive", "bulk"):
        assert [one for one in arrived if one.request_class == request_class] == [
            one for batch in batches for one in batch if one.request_class == request_class
        ]
    for one in arrived:
        if one.request_class == "interactive":
            own = next(index for index, batch in enumerate(batches) if one in batch)
            passed = sum(bulk_in(batch) for batch in batches[max(0, seen[one] - 1) : own + 1])
            assert passed <= limit


def taken(one: Job, batches: list[list[Job]]) -> bool:
    """Return whether the job is in one of these batches."""
    return any(one in batch for batch in batches)


def check_batch(batch: list[Job], left: list[Job], limit: int, now: float) -> None:
    """While interactive jobs are left, a batch is full, and only bulk that has waited long has a share of it."""
    assert len(batch) <= limit
    if any(one.request_class == "interactive" for one in left):
        lazy = [one for one in batch if one.request_class == "bulk"]
        assert limit == len(batch)
        assert len(lazy) <= max(1, limit // BULK_SHARE)
        assert all(now - one.enqueued_at >= BULK_PATIENCE_S for one in lazy[:1])


@CHECKED
@given(st.integers(1, 16), st.integers(0, 48), st.integers(1, 6))
def test_bulk_advances_however_much_interactive_waits(limit: int, more: int, bulk: int) -> None:
    """A bulk job that has waited long runs within a bounded number of batches, whatever interactive waits."""
    waiting = limit + more
    batcher, _, _ = filled(waiting, bulk)
    gap, done = 0, 0
    while done < bulk:
        batch = batcher.take(limit, LATER)
        found = bulk_in(batch)
        done, gap = done + found, 0 if found else gap + 1
        assert gap <= math.ceil(waiting / limit) + 2
        for _ in range(len(batch) - found):
            batcher.put(job(at=LATER))


@CHECKED
@given(st.lists(ARRIVALS, min_size=1, max_size=40), st.integers(1, 8), st.data())
def test_failed_batches_lose_nobody(arrivals: list[RequestClass], limit: int, data: st.DataObject) -> None:
    """Every job runs exactly once in the end, whichever batches fail and return in halves."""
    batcher = Batcher()
    jobs = [job(one) for one in arrivals]
    for one in jobs:
        batcher.put(one)
    ran: list[Job] = []
    while batcher.due_in(limit, LATER) is not None:
        batch = batcher.take(limit, LATER)
        if len(batch) > 1 and data.draw(st.booleans()):
            batcher.give_back(halves(tuple(batch)))
        else:
            ran += batch

    assert len(ran) == len(jobs)
    assert set(ran) == set(jobs)
