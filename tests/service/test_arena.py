"""Slots are admission: taken all or none, shared by descriptor, free again when the last holder lets go."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import numpy as np
import pytest

from service.arena import Arena, Pixels
from service.errors import QueueFull, TooManyImages


@pytest.fixture
def arena() -> Iterator[Arena]:
    """Four slots of 8 x 8 pixels."""
    arena = Arena(4)
    arena.map(8)
    yield arena
    arena.close()
    gc.collect()


def test_a_second_mapping_sees_the_pixels(arena: Arena) -> None:
    """That is how the device process gets them, and how a restarted one gets them again."""
    (slot,) = arena.acquire(1)
    arena.pixels.slot(slot)[...] = 7
    other = Pixels(arena.descriptor, arena.slots, 8)

    np.testing.assert_array_equal(other.gather([slot]), np.full((1, 8, 8, 3), 7, np.uint8))


def test_the_memory_has_no_name(arena: Arena) -> None:
    """Nothing is left behind whatever happens to the processes."""
    assert os.readlink(f"/proc/self/fd/{arena.descriptor}").startswith("/memfd:")


def test_refuses_when_full_and_takes_all_or_none(arena: Arena) -> None:
    """A request for three of two free slots takes none of them."""
    arena.acquire(2)

    with pytest.raises(QueueFull, match="2 of 4 images admitted.*VIM_QUEUE_IMAGES") as refusal:
        arena.acquire(3, retry_after_s=9)
    assert refusal.value.retry_after_s == 9
    assert arena.in_use == 2


def test_what_can_never_fit_is_another_error(arena: Arena) -> None:
    """Retrying would not help, so it is no 429."""
    with pytest.raises(TooManyImages, match="limit is 4"):
        arena.acquire(5)


def test_a_slot_is_free_when_its_last_holder_lets_go(arena: Arena) -> None:
    """A thread that still decodes, or a device that still computes, keeps it."""
    (slot,) = arena.acquire(1)
    arena.hold(slot)

    arena.release(slot)
    assert arena.in_use == 1
    arena.release(slot)
    assert arena.in_use == 0
    assert len(set(arena.acquire(4))) == 4
