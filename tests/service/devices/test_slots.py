"""Slots are shared by descriptor, counted by class, and free when the last holder releases them."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import numpy as np
import pytest

from service.devices.slots import Lease, Slots, map_area
from service.jobs import Area

SMALL = Area(0, 8)


@pytest.fixture
def slots() -> Iterator[Slots]:
    """Four slots of 8 x 8 pixels."""
    slots = Slots(4)
    assert slots.add(8) == SMALL
    yield slots
    slots.close()
    gc.collect()


def test_a_second_mapping_sees_the_pixels(slots: Slots) -> None:
    """Another mapping of the descriptor, as in a new device process, has the same pixels."""
    (slot,) = slots.acquire(1)
    slots.views(SMALL)[slot][...] = 7
    other = map_area(slots.descriptor, SMALL, slots.count).views

    np.testing.assert_array_equal(other[[slot]], np.full((1, 8, 8, 3), 7, np.uint8))


def test_the_memory_has_no_name(slots: Slots) -> None:
    """The memory file is anonymous, so that nothing is left behind when processes end."""
    assert os.readlink(f"/proc/self/fd/{slots.descriptor}").startswith("/memfd:")


def test_slots_are_counted_by_class_until_they_are_free(slots: Slots) -> None:
    """A slot counts for its class until its last holder releases it."""
    (lazy,) = slots.acquire(1, "bulk")
    slots.acquire(2)
    slots.hold(lazy)
    slots.release(lazy)

    images = slots.usage.images
    assert (2, 1, 3) == (images["interactive"].own[0], images["bulk"].own[0], slots.in_use)
    slots.release(lazy)
    assert (2, 0, 2) == (images["interactive"].own[0], images["bulk"].own[0], slots.in_use)


def test_a_slot_is_free_when_its_last_holder_releases_it(slots: Slots) -> None:
    """A slot stays in use until its last holder, such as a thread or a device, releases it."""
    (slot,) = slots.acquire(1)
    slots.hold(slot)

    slots.release(slot)
    assert slots.in_use == 1
    slots.release(slot)
    assert slots.in_use == 0
    assert len(set(slots.acquire(4))) == 4


def leased(number: int, *, count: int, processes: int, memory: int) -> Slots:
    """The slots of one HTTP process, in the memory of the test."""
    return Slots(count, lease=Lease(memory, number, processes))


@pytest.fixture
def memory() -> Iterator[int]:
    """An empty memory file."""
    descriptor = os.memfd_create("test")
    yield descriptor
    os.close(descriptor)


def test_each_process_has_slots_for_all_images(memory: int) -> None:
    """Two processes with four slots each write to different slots of the memory; the canary's is the last one."""
    os.ftruncate(memory, 9 * 8 * 8 * 3)
    one, two = (leased(number, count=4, processes=2, memory=memory) for number in range(2))
    for slots in (one, two):
        for slot in slots.acquire(4):
            slots.views(SMALL)[slot][...] = slots.first + slot + 1
    everything = map_area(memory, SMALL, 9).views

    assert [1, 2, 3, 4, 5, 6, 7, 8, 0] == everything[:, 0, 0, 0].tolist()
    assert [(9, 8), (9, 8)] == [(slots.total, slots.canary_slot) for slots in (one, two)]


def test_memory_beyond_the_part_of_a_process_is_given_back(memory: int) -> None:
    """A process of two that has used all eight slots keeps the memory of four, and of those that are in use."""
    size = 128  # 12 pages
    os.ftruncate(memory, 17 * size * size * 3)
    slots = leased(1, count=8, processes=2, memory=memory)
    views = slots.views(Area(0, size))

    def used() -> int:
        return os.fstat(memory).st_blocks * 512 // (size * size * 3)

    taken = slots.acquire(8)
    for slot in taken:
        views[slot][...] = 7
    slots.release(*[slot for slot in taken if slot != 5])
    slots.trim()
    assert 8 == used()  # they were used since the last time
    slots.trim()
    assert 6 == used()
    assert (views[5] == 7).all()
    slots.release(5)
    slots.trim()

    assert 4 == used()
    assert (views[3] == 7).all()
    assert (views[4] == 0).all()
    assert 8 == len(slots.acquire(8))


def test_each_model_has_pixels_of_its_own_for_the_same_slots(slots: Slots) -> None:
    """Models with images of different sizes use the same slots; a model that is removed gives back all memory."""
    (slot,) = slots.acquire(1)
    large = slots.add(256)
    slots.views(SMALL)[slot][...] = 1
    slots.views(large)[slot][...] = 2

    assert (slots.views(SMALL)[slot] == 1).all()
    used = os.fstat(slots.descriptor).st_blocks
    slots.remove(large)
    assert used - os.fstat(slots.descriptor).st_blocks >= large.slot_bytes // 512
    assert (slots.views(SMALL)[slot] == 1).all()


def test_images_are_counted_by_model(slots: Slots) -> None:
    """A slot counts for the model of its request until it is free."""
    first, _ = slots.acquire(2, model=3)
    slots.acquire(1, "bulk", model=4)
    slots.release(first)

    assert (1, 1) == (slots.in_use_of[3], slots.in_use_of[4])
    assert (1, 1) == (slots.usage.images_of[3].own[0], slots.usage.images_of[4].own[0])
