"""Admission control: limits on images and bytes, a part of both for bulk, and refusals with Retry-After."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import cast

import pytest

from service.devices import usage
from service.devices.usage import Usage
from service.engine.admission import LONGEST_RETRY_S, Admission, BodyAccount, Pace
from service.errors import BodyTooLarge, MemoryFull, QueueFull, TooManyImages
from service.jobs import RequestClass
from service.settings import Settings
from service.status import ModelState
from service.system import shared_counts
from service.system.shared_counts import SharedCount
from tests.service.engine.fake_backend import FakeBackend

SETTINGS = Settings(queue_images=8, queue_bytes=1000, bulk_percent=50)


@pytest.fixture
def backend() -> Iterator[FakeBackend]:
    """A backend with eight slots."""
    backend = FakeBackend(8)
    yield backend
    backend.slots.close()


def admission(backend: FakeBackend, threads: int = 1, settings: Settings = SETTINGS) -> Admission:
    """Admission of eight images and 1,000 bytes, half of them for bulk."""
    return Admission(settings, backend, threads)


def body(admission: Admission, request_class: RequestClass) -> BodyAccount:
    """The account of a new body."""
    return BodyAccount(admission, request_class)


def test_takes_all_slots_or_none(backend: FakeBackend) -> None:
    """A request for three of two free slots takes none of them; one for two gets them."""
    control = admission(backend)
    control.admit("interactive", 6)

    with pytest.raises(QueueFull, match=r"6 of 8 images admitted.*VIM_QUEUE_IMAGES"):
        control.admit("interactive", 3)
    assert 2 == len(control.admit("interactive", 2))


def test_what_can_never_fit_is_another_error(backend: FakeBackend) -> None:
    """A request that can never fit gets 413, also while the queue is full; the limit is that of its class."""
    control = admission(backend)
    control.admit("interactive", 8)

    with pytest.raises(TooManyImages, match=r"limit is 8 \(VIM_QUEUE_IMAGES\)"):
        control.admit("interactive", 9)
    with pytest.raises(TooManyImages, match=r"limit is 4 \(VIM_BULK_PERCENT of VIM_QUEUE_IMAGES\)"):
        control.admit("bulk", 5)
    with pytest.raises(BodyTooLarge, match=r"limit is 1000 \(VIM_QUEUE_BYTES\)"):
        body(control, "interactive").receive(1001)
    with pytest.raises(BodyTooLarge, match=r"limit is 500 \(VIM_BULK_PERCENT of VIM_QUEUE_BYTES\)"):
        body(control, "bulk").receive(501)


def test_a_body_that_grows_beyond_every_room_can_never_fit_either(backend: FakeBackend) -> None:
    """A body without a declared length is refused when it exceeds the limit, with 413."""
    account = body(admission(backend), "interactive")
    account.receive(600)

    with pytest.raises(BodyTooLarge):
        account.receive(600)
    assert 600 == account.size


def test_bulk_cannot_fill_the_queue(backend: FakeBackend) -> None:
    """Bulk may take half of the slots, and interactive requests may take all."""
    control = admission(backend)
    control.admit("bulk", 4)

    with pytest.raises(QueueFull, match="4 of them bulk; for bulk 4 at most"):
        control.admit("bulk", 1)
    assert 4 == len(control.admit("interactive", 4))


def test_bulk_is_refused_while_interactive_fills_the_queue(backend: FakeBackend) -> None:
    """While interactive requests hold all slots bulk is refused: its part is a limit, not a reservation."""
    control = admission(backend)
    control.admit("interactive", 8)

    with pytest.raises(QueueFull):
        control.admit("bulk", 1)


def test_bulk_may_have_one_image_however_small_the_queue(backend: FakeBackend) -> None:
    """Bulk may have at least one image, however small its part of the queue is."""
    control = admission(backend, settings=SETTINGS.model_copy(update={"bulk_percent": 1}))

    assert 1 == len(control.admit("bulk", 1))


def test_bytes_are_counted_as_they_arrive_and_until_the_request_ends(backend: FakeBackend) -> None:
    """The limit on bytes is for all requests together, and a closed account frees its part."""
    control = admission(backend)
    first, second = body(control, "interactive"), body(control, "interactive")
    first.receive(400)
    first.receive(400)

    with pytest.raises(MemoryFull, match="bodies of 800 of 1000 bytes in memory"):
        second.receive(201)
    assert (800, 0) == (backend.slots.usage.body_bytes["interactive"].own[0], second.size)
    first.close()
    second.receive(900)
    assert 900 == backend.slots.usage.body_bytes["interactive"].own[0]


def test_bulk_cannot_fill_the_memory(backend: FakeBackend) -> None:
    """Bulk bodies may use their part of the bytes only; interactive ones may use the rest."""
    control = admission(backend)
    body(control, "bulk").receive(500)

    with pytest.raises(MemoryFull):
        body(control, "bulk").receive(1)
    body(control, "interactive").receive(500)
    assert (500, 500) == (
        backend.slots.usage.body_bytes["interactive"].own[0],
        backend.slots.usage.body_bytes["bulk"].own[0],
    )


def test_a_body_that_would_be_refused_is_refused_before_it_is_read(backend: FakeBackend) -> None:
    """`expect` refuses and counts nothing: a client that sends no body takes no memory from others."""
    control = admission(backend)
    body(control, "interactive").expect(1000)
    body(control, "interactive").expect(1000)
    assert 0 == backend.slots.usage.body_bytes["interactive"].own[0]
    body(control, "interactive").receive(1)

    with pytest.raises(MemoryFull):
        body(control, "interactive").expect(1000)
    control.admit("interactive", 8)
    with pytest.raises(QueueFull):
        body(control, "interactive").expect(0)


@pytest.mark.parametrize(
    ("device_s", "decode_s", "threads", "expected"),
    [(0.0, 0.0, 1, 1), (0.001, 0.0, 1, 1), (0.5, 0.0, 1, 4), (0.5, 3.0, 2, 12), (60.0, 0.0, 1, LONGEST_RETRY_S)],
)
def test_retry_after_follows_the_queue_and_the_slowest_stage(
    backend: FakeBackend, device_s: float, decode_s: float, threads: int, expected: int
) -> None:
    """Retry-After is the time for all admitted images by the slowest stage, from 1 to 30 s."""
    backend.seconds_per_image = {1: device_s}
    control = admission(backend, threads)
    control.decoded(decode_s)
    control.admit("interactive", 8)

    with pytest.raises(QueueFull) as refusal:
        control.admit("interactive", 1)
    assert expected == refusal.value.retry_after_s
    assert isinstance(refusal.value.retry_after_s, int)


@pytest.mark.parametrize("status", [429, 503])
def test_the_status_of_a_refusal_may_be_set(backend: FakeBackend, status: int) -> None:
    """VIM_OVERLOAD_STATUS sets the status of refusals, because some proxies know only 503."""
    control = admission(backend, settings=SETTINGS.model_copy(update={"overload_status": str(status)}))
    control.admit("interactive", 8)

    with pytest.raises(QueueFull) as refusal:
        control.admit("interactive", 1)
    assert status == refusal.value.status
    assert 429 == QueueFull.status


def test_overload_is_one_line_in_the_log_not_one_for_each_refusal(
    backend: FakeBackend, caplog: pytest.LogCaptureFixture
) -> None:
    """Refusals are logged as one line every ten seconds, not as one line each."""
    control = admission(backend)
    control.admit("interactive", 8)
    with caplog.at_level(logging.WARNING, "vim.admission"):
        for _ in range(20):
            with pytest.raises(QueueFull):
                control.admit("interactive", 1)

    assert 1 == len(caplog.records)
    assert "overloaded: queue full: 8 of 8 images admitted" in caplog.text


def test_a_queue_that_takes_longer_than_the_request_allows_is_full_for_it() -> None:
    """A request is refused if the expected wait exceeds its time limit, and admitted if it does not."""
    now = 0.0
    backend = FakeBackend(64)
    control = admission(backend, settings=Settings(queue_images=64))
    control.paces[0] = Pace(lambda: now)
    slots = control.admit("interactive", 60)
    for slot in slots[40:]:
        now += 0.01
        control.leave([slot], answered=True)
    slots = slots[:40]

    with pytest.raises(QueueFull, match=r"queue too long: 40 images .* about 400 ms; the request allows 300 ms"):
        control.admit("interactive", 1, 0.3)
    slots += control.admit("interactive", 1, 0.6)
    backend.slots.release(*slots[10:])
    assert 1 == len(control.admit("interactive", 1, 0.001))
    assert 1 == len(control.admit("interactive", 1, -1.0))  # the caller answers 504
    backend.slots.close()


def test_what_the_devices_cannot_answer_in_time_is_refused_before_anything_was_measured() -> None:
    """Before any measurement the warm-up's time per image counts: 40 images of 0.1 s do not end in 3 s."""
    backend = FakeBackend(64)
    slow = ModelState(least_image_s=0.1)
    control = admission(backend, settings=Settings(queue_images=64))
    control.admit("interactive", 40, 3.0, slow)

    with pytest.raises(QueueFull, match="queue too long: 40 images .* about 4000 ms; the request allows 3000 ms"):
        control.admit("interactive", 1, 3.0, slow)
    assert 1 == len(control.admit("interactive", 1, 6.0, slow))
    backend.slots.close()


def processes(count: int) -> list[FakeBackend]:
    """The backends of HTTP processes that share eight slots."""
    descriptor = shared_counts.memory(count, usage.NUMBERS)
    counts = [shared_counts.mapped(descriptor, count, usage.NUMBERS, number) for number in range(count)]
    os.close(descriptor)
    return [FakeBackend(8, usage=Usage.of(one)) for one in counts]


def test_any_process_admits_what_the_others_do_not_use() -> None:
    """One of two processes may use all slots and all bytes; the other one is then refused, with the same message."""
    one, two = (admission(backend) for backend in processes(2))
    slots = one.admit("interactive", 6)
    first = body(one, "interactive")
    first.receive(900)

    with pytest.raises(QueueFull, match="queue full: 6 of 8 images admitted, 0 of them bulk; for interactive 8"):
        two.admit("interactive", 3)
    with pytest.raises(MemoryFull, match="bodies of 900 of 1000 bytes in memory"):
        body(two, "interactive").receive(101)
    assert 2 == len(two.admit("bulk", 2))
    one.leave(slots, answered=False)
    first.close()
    body(two, "interactive").receive(1000)
    assert 6 == len(two.admit("interactive", 6))


def test_bulk_is_counted_over_all_processes() -> None:
    """Two processes admit half of the slots and bytes for bulk, together."""
    one, two = (admission(backend) for backend in processes(2))
    one.admit("bulk", 3)
    body(one, "bulk").receive(400)

    with pytest.raises(QueueFull, match="3 of them bulk; for bulk 4 at most"):
        two.admit("bulk", 2)
    with pytest.raises(MemoryFull, match="400 of them bulk; for bulk 500 at most"):
        body(two, "bulk").receive(101)
    assert 1 == len(two.admit("bulk", 1))


class Rival:
    """The parts of two processes; the other one adds `amount` directly after this one has read the sum."""

    def __init__(self, own: memoryview, amount: int) -> None:
        self.own, self.amount, self.others = own, amount, 0

    def __iter__(self) -> Iterator[int]:
        yield self.own[0]
        yield self.others
        self.others = self.amount


def test_two_processes_never_exceed_a_limit_together() -> None:
    """If another process adds between the check and the count of this one, this one withdraws its addition."""
    counts = list(shared_counts.alone(usage.NUMBERS))
    for number, amount in ((0, 5), (2, 600)):  # interactive images and bytes
        own = counts[number].own
        counts[number] = SharedCount(own, cast(memoryview, Rival(own, amount)))
    backend = FakeBackend(8, usage=Usage.of(counts))
    control, account = admission(backend), body(admission(backend), "interactive")

    with pytest.raises(QueueFull, match="5 of 8 images admitted"):
        control.admit("interactive", 4)
    with pytest.raises(MemoryFull, match="bodies of 600 of 1000 bytes"):
        account.receive(500)
    assert 3 == len(control.admit("interactive", 3))
    account.receive(400)


def test_the_places_of_a_process_that_was_killed_are_free_again() -> None:
    """The parent clears the counts of a process that has ended."""
    dead, alive = processes(2)
    admission(dead).admit("interactive", 8)
    body(admission(dead), "bulk").receive(500)
    dead.slots.usage.overdue.own[0] = 1
    dead.slots.usage.clear()

    assert 8 == len(admission(alive).admit("interactive", 8))
    body(admission(alive), "interactive").receive(1000)
    assert not any(alive.slots.usage.overdue.parts)
