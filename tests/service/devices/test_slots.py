"""Slots are shared by descriptor, counted by class, and free when the last holder releases them."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import numpy as np
import pytest

from service.devices.slots import Lease, Slots, map_slots


@pytest.fixture
def slots() -> Iterator[Slots]:
    """Four slots of 8 x 8 pixels."""
    slots = Slots(4)
    slots.map(8)
    yield slots
    slots.close()
    gc.collect()


def test_a_second_mapping_sees_the_pixels(slots: Slots) -> None:
    """Another mapping of the descriptor, as in a new device process, has the same pixels."""
    (slot,) = slots.acquire(1)
    slots.views[slot][...] = 7
    other = map_slots(slots.descriptor, slots.count, 8)

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

    assert (2, 1, 3) == (slots.in_use_by["interactive"], slots.in_use_by["bulk"], slots.in_use)
    slots.release(lazy)
    assert (2, 0, 2) == (slots.in_use_by["interactive"], slots.in_use_by["bulk"], slots.in_use)


def test_a_slot_is_free_when_its_last_holder_releases_it(slots: Slots) -> None:
    """A slot stays in use until its last holder, such as a thread or a device, releases it."""
    (slot,) = slots.acquire(1)
    slots.hold(slot)

    slots.release(slot)
    assert slots.in_use == 1
    slots.release(slot)
    assert slots.in_use == 0
    assert len(set(slots.acquire(4))) == 4


def test_a_lease_is_a_part_of_other_slots(slots: Slots) -> None:
    """A lease counts only its own slots, from 0, and never changes the size of the memory."""
    part = Slots(2, Lease(slots.descriptor, first=2, total=slots.total))
    part.map(8)
    (slot,) = part.acquire(1)
    part.views[slot][...] = 5

    assert (slots.views[2] == 5).all()
    assert 0 == slots.in_use
    assert 2 == part.count
