"""Admission: bounds on images and bytes, a part of both for bulk, and a refusal that says when to come back."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from service.devices.slots import Arena
from service.engine.admission import LONGEST_RETRY_S, Admission
from service.engine.pace import Pace
from service.errors import BodyTooLarge, MemoryFull, QueueFull, TooManyImages
from service.settings import Settings

SETTINGS = Settings(queue_images=8, queue_bytes=1000, bulk_percent=50)


@pytest.fixture
def arena() -> Iterator[Arena]:
    """Eight slots."""
    arena = Arena(8)
    yield arena
    arena.close()


def admission(arena: Arena, device_s: float = 0.0, threads: int = 1, settings: Settings = SETTINGS) -> Admission:
    """Of eight images and 1,000 bytes, half of them for bulk."""
    return Admission(settings, arena, threads, lambda: device_s)


def test_takes_all_slots_or_none(arena: Arena) -> None:
    """A request for three of two free slots takes none of them; one for two gets them."""
    door = admission(arena)
    door.take_slots("interactive", 6)

    with pytest.raises(QueueFull, match=r"6 of 8 images admitted.*VIM_QUEUE_IMAGES"):
        door.take_slots("interactive", 3)
    assert 2 == len(door.take_slots("interactive", 2))


def test_what_can_never_fit_is_another_error(arena: Arena) -> None:
    """Coming back would not help, so it is 413, also while the queue is full; the limit is that of the class."""
    door = admission(arena)
    door.take_slots("interactive", 8)

    with pytest.raises(TooManyImages, match=r"limit is 8 \(VIM_QUEUE_IMAGES\)"):
        door.take_slots("interactive", 9)
    with pytest.raises(TooManyImages, match=r"limit is 4 \(VIM_BULK_PERCENT of VIM_QUEUE_IMAGES\)"):
        door.take_slots("bulk", 5)
    with pytest.raises(BodyTooLarge, match=r"limit is 1000 \(VIM_QUEUE_BYTES\)"):
        door.body("interactive").receive(1001)
    with pytest.raises(BodyTooLarge, match=r"limit is 500 \(VIM_BULK_PERCENT of VIM_QUEUE_BYTES\)"):
        door.body("bulk").receive(501)


def test_a_body_that_grows_beyond_every_room_can_never_fit_either(arena: Arena) -> None:
    """It came without a length."""
    body = admission(arena).body("interactive")
    body.receive(600)

    with pytest.raises(BodyTooLarge):
        body.receive(600)
    assert 600 == body.size


def test_bulk_cannot_fill_the_queue(arena: Arena) -> None:
    """Half of it is kept for interactive, which may fill all that is left."""
    door = admission(arena)
    door.take_slots("bulk", 4)

    with pytest.raises(QueueFull, match="4 of them bulk; for bulk 4 at most"):
        door.take_slots("bulk", 1)
    assert 4 == len(door.take_slots("interactive", 4))


def test_bulk_is_refused_while_interactive_fills_the_queue(arena: Arena) -> None:
    """Its part is no reservation."""
    door = admission(arena)
    door.take_slots("interactive", 8)

    with pytest.raises(QueueFull):
        door.take_slots("bulk", 1)


def test_bulk_may_have_one_image_however_small_the_queue(arena: Arena) -> None:
    """A part of less than one image is one."""
    door = admission(arena, settings=SETTINGS.model_copy(update={"bulk_percent": 1}))

    assert 1 == len(door.take_slots("bulk", 1))


def test_bytes_are_counted_as_they_arrive_and_until_the_request_ends(arena: Arena) -> None:
    """The same bound for all requests together."""
    door = admission(arena)
    first, second = door.body("interactive"), door.body("interactive")
    first.receive(400)
    first.receive(400)

    with pytest.raises(MemoryFull, match="bodies of 800 of 1000 bytes in memory"):
        second.receive(201)
    assert (800, 0) == (door.bytes_in_use("interactive"), second.size)
    first.let_go()
    second.receive(900)
    assert 900 == door.bytes_in_use("interactive")


def test_bulk_cannot_fill_the_memory(arena: Arena) -> None:
    """As with images."""
    door = admission(arena)
    door.body("bulk").receive(500)

    with pytest.raises(MemoryFull):
        door.body("bulk").receive(1)
    door.body("interactive").receive(500)
    assert (500, 500) == (door.bytes_in_use("interactive"), door.bytes_in_use("bulk"))


def test_the_door_refuses_what_would_be_refused_later(arena: Arena) -> None:
    """Without counting anything: a client that sends nothing takes no room from others."""
    door = admission(arena)
    door.body("interactive").expect(1000)
    door.body("interactive").expect(1000)
    assert 0 == door.bytes_in_use("interactive")
    door.body("interactive").receive(1)

    with pytest.raises(MemoryFull):
        door.body("interactive").expect(1000)
    door.take_slots("interactive", 8)
    with pytest.raises(QueueFull):
        door.body("interactive").expect(0)


@pytest.mark.parametrize(
    ("device_s", "decode_s", "threads", "expected"),
    [(0.0, 0.0, 1, 1), (0.001, 0.0, 1, 1), (0.5, 0.0, 1, 4), (0.5, 3.0, 2, 12), (60.0, 0.0, 1, LONGEST_RETRY_S)],
)
def test_retry_after_follows_the_queue_and_the_slowest_stage(
    arena: Arena, device_s: float, decode_s: float, threads: int, expected: int
) -> None:
    """Whole seconds until the eight images that are admitted will be answered; at least 1, at most 30."""
    door = admission(arena, device_s, threads)
    door.decoded(decode_s)
    door.take_slots("interactive", 8)

    with pytest.raises(QueueFull) as refusal:
        door.take_slots("interactive", 1)
    assert expected == refusal.value.retry_after_s
    assert isinstance(refusal.value.retry_after_s, int)


@pytest.mark.parametrize("status", [429, 503])
def test_the_status_of_a_refusal_may_be_set(arena: Arena, status: int) -> None:
    """Some proxies know only 503; others take a server out for it."""
    door = admission(arena, settings=SETTINGS.model_copy(update={"overload_status": str(status)}))
    door.take_slots("interactive", 8)

    with pytest.raises(QueueFull) as refusal:
        door.take_slots("interactive", 1)
    assert status == refusal.value.status
    assert 429 == QueueFull.status


def test_overload_is_one_line_in_the_log_not_one_for_each_refusal(
    arena: Arena, caplog: pytest.LogCaptureFixture
) -> None:
    """Each request has its own line anyway."""
    door = admission(arena)
    door.take_slots("interactive", 8)
    with caplog.at_level(logging.WARNING, "vim.admission"):
        for _ in range(20):
            with pytest.raises(QueueFull):
                door.take_slots("interactive", 1)

    assert 1 == len(caplog.records)
    assert "overloaded: queue full: 8 of 8 images admitted" in caplog.text


def test_a_queue_that_takes_longer_than_the_request_allows_is_full_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused at once instead of after its time; who has more time is let in, and who comes when few wait."""
    now = 0.0
    arena = Arena(64)
    door = admission(arena, settings=Settings(queue_images=64))
    monkeypatch.setattr(door, "_pace", Pace(lambda: now))
    slots = door.take_slots("interactive", 40)
    for _ in range(20):
        now += 0.01
        door.answered(1)

    with pytest.raises(QueueFull, match=r"queue too long: 40 images .* about 400 ms; the request allows 300 ms"):
        door.take_slots("interactive", 1, 0.3)
    slots += door.take_slots("interactive", 1, 0.6)
    for slot in slots[10:]:
        arena.release(slot)
    assert 1 == len(door.take_slots("interactive", 1, 0.001))
    assert 1 == len(door.take_slots("interactive", 1, -1.0))  # answered 504, by whoever waits
    arena.close()
