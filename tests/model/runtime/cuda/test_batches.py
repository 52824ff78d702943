"""Batch sizes that fit into memory, the size in which a batch runs, and runs of neighbouring slots."""

from __future__ import annotations

import pytest

from model.runtime.cuda.batches import runs_of, size_for, sizes_that_fit


def test_every_size_that_runs_is_kept() -> None:
    """With enough memory every size is kept."""
    assert [1, 2, 4] == sizes_that_fit([1, 2, 4], lambda size: 10 * size, lambda: 1000)


def test_a_size_that_runs_out_of_memory_ends_the_search() -> None:
    """A size whose peak is None, because memory ran out, ends the search."""
    assert [1, 2] == sizes_that_fit([1, 2, 4, 8], lambda size: 1 if size < 4 else None, lambda: 1000)


def test_a_forecast_beyond_the_free_memory_ends_it_without_a_try() -> None:
    """A size is not tried if 1.1 times twice the last size's bytes exceed nine tenths of the free memory."""
    tried: list[int] = []

    def peak_of(size: int) -> int:
        tried.append(size)
        return 100 * size

    assert [1, 2] == sizes_that_fit([1, 2, 4], peak_of, lambda: 480)
    assert [1, 2] == tried


@pytest.mark.parametrize(("images", "size"), [(1, 1), (2, 2), (3, 4), (5, 6), (6, 6)])
def test_a_batch_runs_in_the_next_larger_size(images: int, size: int) -> None:
    """A batch runs in the smallest size that holds it."""
    assert size == size_for(images, [1, 2, 4, 6])


def test_neighbouring_slots_are_one_run() -> None:
    """A run is the position in the list, the first slot, and the number of slots."""
    assert [(0, 4, 3), (3, 1, 1), (4, 9, 2)] == runs_of([4, 5, 6, 1, 9, 10])
    assert [] == runs_of([])
