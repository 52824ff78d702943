"""Slots are admission: taken all or none, shared by descriptor, free again when the last holder lets go."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import numpy as np
import pytest

from service.devices.slots import Lease, Pixels, Slots


@pytest.fixture
def arena() -> Iterator[Slots]:
    """Four slots of 8 x 8 pixels."""
    arena = Slots(4)
    arena.map(8)
    yield arena
    arena.close()
    gc.collect()


def test_a_second_mapping_sees_the_pixels(arena: Slots) -> None:
    """That is how the device process gets them, and how a restarted one gets them again."""
    (slot,) = arena.acquire(1)
    arena.pixels.slot(slot)[...] = 7
    other = Pixels(arena.descriptor, arena.slots, 8)

    np.testing.assert_array_equal(other.all[[slot]], np.full((1, 8, 8, 3), 7, np.uint8))


def test_the_memory_has_no_name(arena: Slots) -> None:
    """Nothing is left behind whatever happens to the processes."""
    assert os.readlink(f"/proc/self/fd/{arena.descriptor}").startswith("/memfd:")


def test_slots_are_counted_by_class_until_they_are_free(arena: Slots) -> None:
    """Also while only a thread or a device holds them."""
    (lazy,) = arena.acquire(1, "bulk")
    arena.acquire(2)
    arena.hold(lazy)
    arena.release(lazy)

    assert (2, 1, 3) == (arena.in_use_by["interactive"], arena.in_use_by["bulk"], arena.in_use)
    arena.release(lazy)
    assert (2, 0, 2) == (arena.in_use_by["interactive"], arena.in_use_by["bulk"], arena.in_use)


def test_a_slot_is_free_when_its_last_holder_lets_go(arena: Slots) -> None:
    """A thread that still decodes, or a device that still computes, keeps it."""
    (slot,) = arena.acquire(1)
    arena.hold(slot)

    arena.release(slot)
    assert arena.in_use == 1
    arena.release(slot)
    assert arena.in_use == 0
    assert len(set(arena.acquire(4))) == 4


def test_a_lease_is_a_part_of_another_arena(arena: Slots) -> None:
    """Its slot 0 is the first that was let; it counts its own only, and never changes the memory's size."""
    part = Slots(2, Lease(arena.descriptor, first=2, total=arena.total))
    part.map(8)
    (slot,) = part.acquire(1)
    part.pixels.slot(slot)[...] = 5

    assert (arena.pixels.slot(2) == 5).all()
    assert 0 == arena.in_use
    assert 2 == part.slots
